//! The table as people read it: docs/operators.md, and `onnx-gradients ops`.

use super::{Integers, Rule, Slot, all};
use crate::graph::Bodies;
use std::fmt::Write;

impl Rule {
    /// The operator with its domain: `Conv`, `com.microsoft.Gelu`.
    pub fn name(&self) -> String {
        if self.domain.is_empty() { self.op.to_owned() } else { format!("{}.{}", self.domain, self.op) }
    }

    /// The versions of the domain at which the row holds: `all`, `to 12`, `from 13`.
    pub fn versions(&self) -> String {
        match (self.since, self.until) {
            (1, i64::MAX) => "all".to_owned(),
            (since, i64::MAX) => format!("from {since}"),
            (1, until) => format!("to {until}"),
            (since, until) => format!("{since} to {until}"),
        }
    }

    /// What each input gets, by its number.
    pub fn inputs(&self) -> String {
        let last = self.slots.len().saturating_sub(1);
        let describe = |(i, slot): (usize, &Slot)| {
            let more = if i == last && self.slot(i + 1).is_some() { " and on" } else { "" };
            match slot {
                Slot::Unary(_) | Slot::Binary(_) | Slot::Formula(_) | Slot::Try(_) | Slot::Broadcast(_) => {
                    format!("{i}: gradient")
                }
                Slot::Each(_) | Slot::TryEach(_) | Slot::EachBroadcast(_) => format!("{i}{more}: gradient"),
                Slot::Zero => format!("{i}: zero"),
                Slot::Stop(reason) => format!("{i}{more}: none ({reason})"),
                Slot::Rounding(reason) => format!("{i}: none ({reason}); dy with `--straight-through`"),
                Slot::Through(_) | Slot::Together(_) if last > 0 => format!("{i}: gradient"),
                Slot::Through(_) | Slot::Together(_) => match self.bodies {
                    Bodies::None => "all: gradient".to_owned(),
                    Bodies::Branches => "0: none (a condition); captured tensors: gradient".to_owned(),
                    Bodies::Protocol(_) => "all, and captured tensors: gradient".to_owned(),
                },
            }
        };
        self.slots.iter().enumerate().map(describe).collect::<Vec<_>>().join("; ")
    }

    /// Conventions and limits, those among them that the marks of the row say.
    pub fn notes(&self) -> String {
        let integers = match self.integers {
            Integers::Ignored => "",
            Integers::Moved => "also of quantized integers, with `--straight-through`",
            Integers::Rounded => "integers have gradients with `--straight-through` only",
        };
        [self.note, integers].into_iter().filter(|n| !n.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// The rows in alphabetical order, the standard's operators first.
pub fn sorted() -> Vec<&'static Rule> {
    let mut rows: Vec<&Rule> = all().collect();
    rows.sort_by_key(|r| (r.domain, r.op, r.since));
    rows
}

/// The contents of docs/operators.md.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Operators\n\nWritten by `onnx-gradients ops --markdown > docs/operators.md` from the table in `src/rules`; a test holds the two \
         together.\n\n`y` is the operator's output, `dy` the gradient that arrives at it, `dx` the one that its input gets. \"none\": no \
         gradient passes. \"zero\": the input counts as connected, and gets zeros. Versions are those of the operator set that the model \
         imports.\n\n| operator | versions | formula | inputs | notes |\n| --- | --- | --- | --- | --- |\n",
    );
    for r in sorted() {
        let cell = |t: &str| t.replace('|', "\\|");
        let cells = [r.name(), r.versions(), cell(r.formula), cell(&r.inputs()), cell(&r.notes())];
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}
