//! A model of a batch as the comparison, the reasons and the page see it.

use super::Line;
use serde_json::Value;

/// A line, and how it counts.
pub struct Entry<'a> {
    pub line: &'a Line,
    pub success: bool,
}

impl Entry<'_> {
    /// How it is coloured.
    pub fn class(&self) -> &'static str {
        match (self.line.code.as_str(), self.success) {
            ("ok", _) => "good",
            (_, true) => "allowed",
            (_, false) => "bad",
        }
    }

    /// The operator that its error is about, or nothing.
    pub fn operator(&self) -> &str {
        self.line.report["operator"].as_str().unwrap_or_default()
    }

    /// What is found of each gradient: by `grad` and the like below `validation`, by `check` of each call.
    pub fn checks(&self) -> Vec<&Value> {
        fn list(value: &Value) -> &[Value] {
            value.as_array().map_or(&[], Vec::as_slice)
        }
        let report = &self.line.report;
        let lists = [&report["validation"]["gradients"], &report["gradients"], &report["nodes"]];
        if let Some(found) = lists.into_iter().map(list).find(|l| !l.is_empty()) {
            return found.iter().collect();
        }
        let calls = report.as_object().into_iter().flat_map(|calls| calls.values());
        calls.flat_map(|call| list(&call["gradients"])).collect()
    }

    /// The largest error of a gradient that was compared.
    pub fn error(&self) -> Option<f64> {
        let compared = self.checks().into_iter().filter(|g| g["compared"] == true);
        compared.filter_map(|g| g["error"].as_f64()).reduce(f64::max)
    }

    /// Its message without the names in it, by which messages of one kind are counted together.
    pub fn reason(&self) -> String {
        let message = self.line.message.as_deref().unwrap_or_default();
        // Messages begin with the path of the model, which no two share, as messages have it.
        let model = crate::error::shortened(self.line.model.to_string());
        let message =
            message.find(&model).map_or(message, |at| message[at + model.len()..].trim_start_matches([':', ' ']));
        let mut reason = String::new();
        let mut rest = message;
        // A quote begins behind no letter and ends before none: that of "the model's" is none.
        while let Some(start) = rest.find('\'') {
            let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            let inside = &rest[start + 1..];
            let ends = inside.match_indices('\'').map(|(at, _)| at);
            let end = ends.into_iter().find(|&at| !letter(inside[at + 1..].chars().next()));
            match end.filter(|_| !letter(rest[..start].chars().next_back())) {
                Some(end) => {
                    reason.push_str(&rest[..start]);
                    reason.push_str("'…'");
                    rest = &inside[end + 1..];
                }
                None => {
                    reason.push_str(&rest[..=start]);
                    rest = inside;
                }
            }
        }
        reason + rest
    }
}
