//! Names that nothing has yet.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Names that are taken.
#[derive(Clone, Debug, Default)]
pub struct Names {
    taken: HashSet<Rc<str>>,
    /// How often a name was asked for that was taken: no number is tried twice.
    asked: HashMap<String, usize>,
}

impl Names {
    /// Whether something has the name.
    pub fn contains(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// The taken names, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Rc<str>> {
        self.taken.iter()
    }

    /// Takes the name, or where it is taken `name_1`, `name_2` and so on.
    pub fn fresh(&mut self, name: String) -> String {
        if self.taken.insert(name.as_str().into()) {
            return name;
        }
        let number = self.asked.entry(name.clone()).or_default();
        loop {
            *number += 1;
            let numbered = format!("{name}_{number}");
            if self.taken.insert(numbered.as_str().into()) {
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
