//! Names that nothing has yet.

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
