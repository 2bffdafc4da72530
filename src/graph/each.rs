//! What walks over a whole graph note of its values: an entry for each of them, in the order in which they were made,
//! so that a walk finds the next one beside the last. Of few values of a graph [`IdMap`](super::IdMap) and
//! [`IdSet`](super::IdSet) note less.

use super::ValueId;
use std::borrow::Borrow;

/// A map from the values of a graph.
#[derive(Clone, Debug)]
pub struct EachValue<T>(Vec<Option<T>>);

impl<T> Default for EachValue<T> {
    fn default() -> Self {
        EachValue(Vec::new())
    }
}

impl<T> EachValue<T> {
    /// What is noted of a value.
    pub fn get(&self, value: &ValueId) -> Option<&T> {
        self.0.get(value.number())?.as_ref()
    }

    /// Whether something is noted of a value.
    pub fn contains_key(&self, value: &ValueId) -> bool {
        self.get(value).is_some()
    }

    /// Notes something, in the place of what was noted before.
    pub fn insert(&mut self, value: ValueId, noted: T) {
        *self.place(value) = Some(noted);
    }

    /// What is noted of a value, to be changed; the default where there is nothing yet.
    pub fn or_default(&mut self, value: ValueId) -> &mut T
    where
        T: Default,
    {
        self.place(value).get_or_insert_default()
    }

    fn place(&mut self, value: ValueId) -> &mut Option<T> {
        let number = value.number();
        if number >= self.0.len() {
            self.0.resize_with(number + 1, || None);
        }
        &mut self.0[number]
    }
}

impl<T> FromIterator<(ValueId, T)> for EachValue<T> {
    fn from_iter<I: IntoIterator<Item = (ValueId, T)>>(noted: I) -> Self {
        let mut map = EachValue::default();
        noted.into_iter().for_each(|(value, noted)| map.insert(value, noted));
        map
    }
}

/// A set of values of a graph.
#[derive(Clone, Debug, Default)]
pub struct ValueSet(Vec<bool>);

impl ValueSet {
    /// Whether a value is among them.
    pub fn contains(&self, value: &ValueId) -> bool {
        self.0.get(value.number()).copied().unwrap_or_default()
    }

    /// Takes a value up; returns whether it is new.
    pub fn insert(&mut self, value: ValueId) -> bool {
        let number = value.number();
        if number >= self.0.len() {
            self.0.resize(number + 1, false);
        }
        !std::mem::replace(&mut self.0[number], true)
    }

    /// Leaves out the values of another set.
    pub fn without(mut self, other: &ValueSet) -> Self {
        self.0.iter_mut().zip(&other.0).for_each(|(own, other)| *own &= !other);
        self
    }
}

impl<V: Borrow<ValueId>> Extend<V> for ValueSet {
    fn extend<I: IntoIterator<Item = V>>(&mut self, values: I) {
        values.into_iter().for_each(|value| {
            self.insert(*value.borrow());
        });
    }
}

impl<V: Borrow<ValueId>> FromIterator<V> for ValueSet {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        let mut set = ValueSet::default();
        set.extend(values);
        set
    }
}
