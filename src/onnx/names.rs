//! Names: such as nothing has yet, and such as are like another.

use std::collections::hash_map::{Entry, VacantEntry};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// Names that are taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    /// For each name how often it was asked for when it was taken: no number is tried twice.
    taken: HashMap<Rc<str>, u32>,
}

impl Names {
    /// Whether something has the name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.taken.contains_key(name)
    }

    /// The taken names, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rc<str>> {
        self.taken.keys()
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, names: usize) {
        self.taken.reserve(names);
    }

    /// Takes the name, or where it is taken `name_1`, `name_2` and so on.
    pub(crate) fn fresh(&mut self, name: String) -> String {
        self.shared(&name).as_ref().into()
    }

    /// As [`Names::fresh`]; the name that is kept and the one that is given out are one.
    pub(crate) fn shared(&mut self, name: &str) -> Rc<str> {
        let mut number = match self.taken.entry(name.into()) {
            Entry::Vacant(free) => return take(free),
            Entry::Occupied(mut taken) => count(taken.get_mut()),
        };
        loop {
            match self.taken.entry(format!("{name}_{number}").into()) {
                Entry::Vacant(free) => return take(free),
                Entry::Occupied(_) => number = self.taken.get_mut(name).map_or(number, count),
            }
        }
    }
}

fn take(free: VacantEntry<'_, Rc<str>, u32>) -> Rc<str> {
    let name = free.key().clone();
    free.insert(0);
    name
}

fn count(asked: &mut u32) -> u32 {
    *asked = asked.saturating_add(1);
    *asked
}

impl<T: Into<Rc<str>>> Extend<T> for Names {
    fn extend<I: IntoIterator<Item = T>>(&mut self, names: I) {
        names.into_iter().for_each(|name| {
            self.taken.entry(name.into()).or_default();
        });
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

/// So many names are few enough to be listed.
const FEW: usize = 8;

/// What a message about an unknown name ends in: `; did you mean 'x'?`; where no candidate is like it, those that there
/// are, or nothing where they are many.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let candidates: BTreeSet<&str> = candidates.filter(|c| !c.is_empty()).collect();
    match nearest(name, candidates.iter().copied()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None if candidates.is_empty() || candidates.len() > FEW => String::new(),
        None => format!("; there {} {}", if candidates.len() == 1 { "is" } else { "are" }, listed(candidates)),
    }
}

/// Names as they stand in a message: the first of them, and how many more there are.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("'{name}'")).collect();
    match names.len().saturating_sub(FEW) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..FEW].join(", ")),
    }
}
