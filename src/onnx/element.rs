//! What the element types of tensors are like.

use super::ElementType;

impl ElementType {
    /// Whether tensors of this type carry gradients: the four real floating-point types of 16 bits and more.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Double | Self::Float16 | Self::Bfloat16)
    }

    /// float32 for the floating-point types of 16 bits, in which sums and roots lose too much; the others as they are.
    pub fn widened(self) -> Self {
        match self {
            Self::Float16 | Self::Bfloat16 => Self::Float,
            other => other,
        }
    }

    /// Whether the elements are integers, signed or not, of any width.
    pub fn is_integer(self) -> bool {
        self.is_signed_integer()
            || matches!(self, Self::Uint2 | Self::Uint4 | Self::Uint8 | Self::Uint16 | Self::Uint32 | Self::Uint64)
    }

    /// Whether the elements are signed integers.
    pub fn is_signed_integer(self) -> bool {
        matches!(self, Self::Int2 | Self::Int4 | Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64)
    }

    /// The bits of one element; `None` for strings and the undefined type.
    pub fn bits(self) -> Option<usize> {
        Some(match self {
            Self::Undefined | Self::String => return None,
            Self::Uint2 | Self::Int2 => 2,
            Self::Uint4 | Self::Int4 | Self::Float4e2m1 => 4,
            Self::Float6e2m3 | Self::Float6e3m2 => 6,
            Self::Uint8 | Self::Int8 | Self::Bool => 8,
            Self::Float8e4m3fn | Self::Float8e4m3fnuz | Self::Float8e5m2 | Self::Float8e5m2fnuz | Self::Float8e8m0 => 8,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 16,
            Self::Float | Self::Uint32 | Self::Int32 => 32,
            Self::Double | Self::Uint64 | Self::Int64 | Self::Complex64 => 64,
            Self::Complex128 => 128,
        })
    }

    /// The least and the greatest number of a type that tensors are quantized to.
    pub fn quantized_range(self) -> Option<(f64, f64)> {
        let symmetric = |bound: f64| Some((-bound, bound));
        match self {
            Self::Float4e2m1 => symmetric(6.0),
            Self::Float8e4m3fn => symmetric(448.0),
            Self::Float8e4m3fnuz => symmetric(240.0),
            Self::Float8e5m2 | Self::Float8e5m2fnuz => symmetric(57344.0),
            _ if self.is_integer() => {
                let steps = (self.bits().filter(|&b| b <= 32)? as f64).exp2();
                Some(if self.is_signed_integer() { (-steps / 2.0, steps / 2.0 - 1.0) } else { (0.0, steps - 1.0) })
            }
            _ => None,
        }
    }

    /// The name in ONNX's text syntax and in messages: `float`, `int64`, `bfloat16`.
    pub fn name(self) -> String {
        self.as_str_name().to_lowercase()
    }

    /// The type that [`ElementType::name`] calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::from_str_name(&name.to_uppercase())
    }

    /// The type of a number in a protobuf field; unknown numbers are the undefined type.
    pub fn from_number(number: i32) -> Self {
        Self::try_from(number).unwrap_or(Self::Undefined)
    }
}
