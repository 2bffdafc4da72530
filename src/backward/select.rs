//! Tensors by name: exact names, wildcards, suggestions for misspelt ones.

use crate::error::Error;
use crate::graph::{Graph, IdSet, Loaded, Node, NodeId, ValueId};
use crate::onnx::{did_you_mean, listed, nearest};
use anyhow::Result;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Of so many unknown names a message says which ones were meant: to look for one goes through all names.
const TOLD: usize = 8;

/// Finds tensors of the main graph by name.
pub struct Selection<'a> {
    loaded: &'a Loaded,
    /// All names in alphabetical order, once a pattern asks for them.
    sorted: OnceCell<Vec<(&'a str, ValueId)>>,
    /// The first node of each name, once an output is named by its node.
    nodes: OnceCell<HashMap<&'a str, NodeId>>,
}

impl<'a> Selection<'a> {
    /// Over the tensors of a loaded model.
    pub fn new(loaded: &'a Loaded) -> Self {
        Selection { loaded, sorted: OnceCell::new(), nodes: OnceCell::new() }
    }

    /// The tensors of the given names, in their order.
    ///
    /// # Errors
    /// Names of no tensor, all of them in one message, each with the nearest name that exists.
    pub fn find<S: AsRef<str>>(&self, what: &str, names: &[S]) -> Result<Vec<ValueId>> {
        self.each(what, names, |name| self.by_name(name).into_iter().collect()).map(|found| found.concat())
    }

    /// The tensors of the given names, or that match them as patterns, for each name; see [`super::Wanted::Named`].
    ///
    /// # Errors
    /// As [`Selection::find`].
    pub fn find_all<S: AsRef<str>>(&self, what: &str, names: &[S]) -> Result<Vec<Vec<ValueId>>> {
        self.each(what, names, |name| match self.by_name(name) {
            Some(id) => vec![id],
            None if name.contains(['*', '?']) => self.matching(name),
            None => vec![],
        })
    }

    /// The tensors whose names match a pattern, in the order of the model. Only those are looked at that begin as the
    /// pattern does.
    fn matching(&self, pattern: &str) -> Vec<ValueId> {
        let sorted = self.sorted.get_or_init(|| {
            let mut all: Vec<(&str, ValueId)> = self.loaded.names.iter().map(|(name, &id)| (&**name, id)).collect();
            all.sort_unstable();
            all
        });
        let start = pattern.split(['*', '?']).next().unwrap_or_default();
        let first = sorted.partition_point(|&(name, _)| name < start);
        let begin_so = sorted[first..].iter().take_while(|(name, _)| name.starts_with(start));
        let mut found: Vec<ValueId> = begin_so.filter(|(name, _)| matches(pattern, name)).map(|&(_, id)| id).collect();
        found.sort_unstable();
        found
    }

    fn each<S: AsRef<str>>(
        &self,
        what: &str,
        names: &[S],
        mut find: impl FnMut(&str) -> Vec<ValueId>,
    ) -> Result<Vec<Vec<ValueId>>> {
        let (mut all, mut unknown) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names.iter().map(AsRef::as_ref) {
            let found = find(name);
            if found.is_empty() {
                unknown.push(name);
            }
            all.push(found);
        }
        let Some(first) = unknown.first() else { return Ok(all) };
        let mut told: Vec<String> = unknown.iter().take(TOLD).map(|name| self.unknown(name)).collect();
        if unknown.len() > TOLD {
            told.push(format!("{} more names of no tensor", unknown.len() - TOLD));
        }
        let text = told.join("; ");
        let near = nearest(first, self.loaded.names.keys().map(|n| &**n)).map(|near| format!("did you mean '{near}'?"));
        Err(Error::name(format_args!("{what}: {text}")).with_tensor(first).with_remedy(near).into())
    }

    /// The tensor of a name, or of `NODE:k`, where no tensor has that name.
    pub(super) fn by_name(&self, name: &str) -> Option<ValueId> {
        self.loaded.names.get(name).copied().or_else(|| self.output_of_node(name))
    }

    /// As TensorFlow names the outputs of operations: `NODE:k`.
    fn output_of_node(&self, name: &str) -> Option<ValueId> {
        let (node, k) = name.rsplit_once(':')?;
        let k: usize = k.parse().ok()?;
        let graph = &self.loaded.graph;
        let nodes = self.nodes.get_or_init(|| {
            let all = graph.scope(Graph::MAIN).nodes.iter().rev();
            all.filter_map(|&id| Some((graph.node(id).name.as_deref()?, id))).collect()
        });
        graph.node(*nodes.get(node)?).outputs.get(k).copied().flatten()
    }

    /// The model that is selected from.
    pub(super) fn loaded(&self) -> &Loaded {
        self.loaded
    }

    /// Every floating-point graph input.
    pub fn inputs(&self) -> Vec<ValueId> {
        let graph = &self.loaded.graph;
        let floats = |&&v: &&ValueId| graph.fact(v).element.is_some_and(|e| e.is_float());
        graph.scope(Graph::MAIN).inputs.iter().filter(floats).copied().collect()
    }

    /// Every floating-point graph output.
    pub fn outputs(&self) -> Vec<ValueId> {
        let graph = &self.loaded.graph;
        let floats = |&&v: &&ValueId| graph.fact(v).element.is_some_and(|e| e.is_float());
        graph.scope(Graph::MAIN).outputs.iter().filter(floats).copied().collect()
    }

    /// The tensors among `xs` from which a path leads to one of `ys`.
    pub fn reaching(&self, xs: &[ValueId], ys: &[ValueId]) -> Vec<ValueId> {
        let sources = self.loaded.graph.sources(ys);
        xs.iter().copied().filter(|x| sources.contains(x)).collect()
    }

    /// The names of the outputs of those nodes that lie between an x and a y, or in the body of one that does, and that
    /// are asked for.
    pub fn between(&self, xs: &[ValueId], ys: &[ValueId], asked: &dyn Fn(&Node) -> bool) -> HashSet<Rc<str>> {
        let graph = &self.loaded.graph;
        let mut below: IdSet<ValueId> = xs.iter().copied().collect();
        let mut path = Vec::new();
        for &id in &graph.scope(Graph::MAIN).nodes {
            let node = graph.node(id);
            if node.inputs.iter().flatten().chain(&graph.captures(id)).any(|v| below.contains(v)) {
                below.extend(node.outputs.iter().flatten());
                path.push(id);
            }
        }
        let mut above: IdSet<ValueId> = ys.iter().copied().collect();
        let mut open = Vec::new();
        for id in path.into_iter().rev() {
            let node = graph.node(id);
            if node.outputs.iter().flatten().any(|v| above.contains(v)) {
                above.extend(node.inputs.iter().flatten().copied().chain(graph.captures(id)));
                open.push(id);
            }
        }
        let mut found = HashSet::new();
        while let Some(id) = open.pop() {
            let node = graph.node(id);
            if asked(node) {
                found.extend(node.outputs.iter().flatten().filter_map(|&o| graph.value(o).name.clone()));
            }
            open.extend(node.bodies.iter().flat_map(|&(_, body)| &graph.scope(body).nodes));
        }
        found
    }

    /// The name of a tensor of the main graph.
    pub fn name(&self, id: ValueId) -> String {
        self.loaded.graph.value(id).name.as_deref().unwrap_or_default().to_owned()
    }

    /// The names that everyone knows of a model, for one who has named something else.
    fn ends(&self) -> String {
        let scope = self.loaded.graph.scope(Graph::MAIN);
        let names = |ids: &[ValueId]| ids.iter().map(|&id| self.name(id)).filter(|n| !n.is_empty()).collect::<Vec<_>>();
        let (inputs, outputs) = (names(&scope.inputs), names(&scope.outputs));
        let [inputs, outputs] = [&inputs, &outputs].map(|names| listed(names.iter().map(String::as_str)));
        format!("; the model's inputs are {inputs}, its outputs {outputs}")
    }

    fn unknown(&self, name: &str) -> String {
        if self.loaded.inner_names.contains(name) {
            return format!(
                "tensor '{name}' lies inside a function or the body of a control-flow node, which cannot be addressed from outside"
            );
        }
        if name.contains(['*', '?']) {
            return format!("no tensor matches '{name}'");
        }
        let hint = did_you_mean(name, self.loaded.names.keys().map(|n| &**n));
        let hint = if hint.is_empty() { self.ends() } else { hint };
        format!("no tensor is called '{name}'{hint}")
    }
}

/// Whether a text matches a pattern of `*` and `?`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            // The last star takes one more character.
            _ => match star {
                Some((sp, st)) => {
                    star = Some((sp, st + 1));
                    p = sp + 1;
                    t = st + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// A scope name that no tensor of the model begins with: `gradients`, else `gradients_1`, and so on.
pub fn free_scope(name: &str, names: impl Iterator<Item = impl AsRef<str>>) -> String {
    let depth = name.matches('/').count();
    let mut prefixes: HashSet<String> = HashSet::new();
    for taken in names {
        let taken = taken.as_ref();
        let prefix = taken.match_indices('/').nth(depth).map_or(taken, |(end, _)| &taken[..end]);
        // Few names begin like the scope.
        if prefix.starts_with(name) && !prefixes.contains(prefix) {
            prefixes.insert(prefix.to_owned());
        }
    }
    (0..)
        .map(|i| if i == 0 { name.to_owned() } else { format!("{name}_{i}") })
        .find(|candidate| !prefixes.contains(candidate))
        .unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("layer*.weight", "layer1.conv.weight", true),
            ("layer*.weight", "layer1.conv.bias", false),
            ("?", "W", true),
            ("?", "W1", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn scopes_do_not_collide() {
        let names = ["x", "gradients/x", "gradients_1/gradients/x"];
        assert_eq!(free_scope("gradients", names.iter()), "gradients_2");
        assert_eq!(free_scope("a/b", ["a/c", "a"].iter()), "a/b");
    }
}
