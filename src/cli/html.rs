//! What pages have in common that need nothing but a browser: text that is safe in them, their head, numbers for
//! people.

use std::fmt::{self, Display, Write};

/// How all pages look: light and dark, on a screen and on paper.
const STYLE: &str = include_str!("html.css");

/// Text from a model or a path, as text of a page: no markup, and nothing that hides or turns around what stands
/// beside it.
pub struct Plain<'a>(pub &'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(' ')?,
                // Marks that change the direction of text, and those of no width.
                '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                    write!(f, "\\u{{{:x}}}", c as u32)?;
                }
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A path as text of a page, which may be broken behind each folder.
pub fn path(name: &str) -> String {
    Plain(name).to_string().replace('/', "/<wbr>")
}

/// The begin of a page, up to its body; `own` is what it has of styles for itself. It may load nothing.
pub fn head(title: &str, own: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src \
         'unsafe-inline'\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}{own}</style>\n</head>\n<body>\n",
        Plain(title),
    )
}

/// A number of bytes.
pub fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let unit = (0..4).find(|n| bytes < 1000_u64.pow(n + 2)).unwrap_or(3);
    format!("{:.1} {}", bytes as f64 / 1000_f64.powi(unit as i32 + 1), units[unit as usize])
}

/// A number of seconds.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
