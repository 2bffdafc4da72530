//! Names: such as nothing has yet, and such as are like another.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Names that are taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    taken: HashSet<Rc<str>>,
    /// How often a name was asked for that was taken: no number is tried twice.
    asked: HashMap<Rc<str>, usize>,
}

impl Names {
    /// Whether something has the name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// The taken names, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<str>> {
        self.taken.iter()
    }

    /// Takes the name, or where it is taken `name_1`, `name_2` and so on.
    pub(crate) fn fresh(&mut self, name: String) -> String {
        self.shared(&name).as_ref().into()
    }

    /// As [`Names::fresh`]; the name that is kept and the one that is given out are one.
    pub(crate) fn shared(&mut self, name: &str) -> Rc<str> {
        let wanted: Rc<str> = name.into();
        if self.taken.insert(wanted.clone()) {
            return wanted;
        }
        let number = self.asked.entry(wanted).or_default();
        loop {
            *number += 1;
            let numbered: Rc<str> = format!("{name}_{number}").into();
            if self.taken.insert(numbered.clone()) {
                return numbered;
            }
        }
    }
}

impl<T: Into<Rc<str>>> Extend<T> for Names {
    fn extend<I: IntoIterator<Item = T>>(&mut self, names: I) {
        self.taken.extend(names.into_iter().map(Into::into));
    }
}

impl<T: Into<Rc<str>>> FromIterator<T> for Names {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Self {
        let mut taken = Names::default();
        taken.extend(names);
        taken
    }
}

/// The candidate that is most like `name`, whatever its case, if any is like it at all. One that ends in it is like it:
/// `layers.0.weight` where `weight` is asked for.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let score = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let ending = if name.is_empty() || !candidate.ends_with(&name) { 0.0 } else { 0.8 };
        strsim::jaro_winkler(&name, &candidate).max(ending)
    };
    let scored = candidates.map(|c| (score(c), c)).filter(|&(score, _)| score > 0.7);
    scored.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1))).map(|(_, c)| c)
}

/// What a message about an unknown name ends in: `; did you mean 'x'?`, or nothing where no candidate is like it.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    nearest(name, candidates).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default()
}
