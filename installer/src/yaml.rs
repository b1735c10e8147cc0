//! The one door to the YAML reader: text in, a tree in which every node knows its place out.
//!
//! Config that people write is read into a plain tree first and checked by hand afterwards, because
//! that is what lets several independent mistakes be reported at once. Keys that occur twice are kept
//! in the tree for the same reason.

use std::{fmt, ops::Range, sync::Arc};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{MergeKeyPolicy, Options, Spanned, options::DuplicateKeyPolicy};

use crate::problem::{Problem, Source};

/// A YAML value and where it stands in its file.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) kind: Kind,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a map.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

impl Node {
    /// The entries, when this is a map.
    pub(crate) fn entries(&self) -> Option<&[Entry]> {
        match &self.kind {
            Kind::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The node at the end of `path`, going through maps.
    pub(crate) fn at<'a>(&'a self, path: &[impl AsRef<str>]) -> Option<&'a Entry> {
        let (first, rest) = path.split_first()?;
        let entry = self
            .entries()?
            .iter()
            .find(|entry| entry.key == first.as_ref())?;
        if rest.is_empty() {
            Some(entry)
        } else {
            entry.value.at(rest)
        }
    }

    /// The kind of value in words, for messages.
    pub(crate) fn describe(&self) -> &'static str {
        match self.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "a boolean",
            Kind::Number(_) => "a number",
            Kind::Text(_) => "a string",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    /// The same value without its places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(value) => Value::Number(value.clone()),
            Kind::Text(value) => Value::String(value.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// Calls `visit` for this node and every node below it.
    pub(crate) fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Node)) {
        visit(self);
        match &self.kind {
            Kind::List(items) => items.iter().for_each(|item| item.walk(visit)),
            Kind::Map(entries) => entries.iter().for_each(|entry| entry.value.walk(visit)),
            Kind::Null | Kind::Bool(_) | Kind::Number(_) | Kind::Text(_) => {}
        }
    }
}

/// Reads a document that people wrote. An empty document is an empty map.
pub(crate) fn read(source: &Arc<Source>) -> Result<Node, Box<Problem>> {
    serde_saphyr::from_str_with_options::<Spanned<Raw>>(&source.text, options())
        .map(|raw| node(raw, source))
        .map_err(|error| Box::new(broken(source, &error)))
}

/// Reads machine-written or embedded data into `T`.
pub(crate) fn read_typed<T: for<'de> Deserialize<'de>>(
    source: &Arc<Source>,
) -> Result<T, Box<Problem>> {
    serde_saphyr::from_str_with_options(
        &source.text,
        serde_saphyr::options! { with_snippet: false },
    )
    .map_err(|error| Box::new(broken(source, &error)))
}

fn options() -> Options {
    serde_saphyr::options! {
        // The tree keeps both, so that the report can show both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Merge,
        // `017` is 15 to Helm; the values that it gets must not differ from what it would have read.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

fn broken(source: &Arc<Source>, error: &serde_saphyr::Error) -> Problem {
    let location = error.location();
    let span = location.map(|location| {
        let span = location.span();
        let start = usize::try_from(span.byte_offset().unwrap_or(span.offset())).unwrap_or(0);
        let length = usize::try_from(span.byte_len().unwrap_or(span.len())).unwrap_or(0);
        source.clamp(start..start + length.max(1))
    });
    let mut message = error.without_snippet().to_string();
    // The place is shown by the report; the reader repeats it at the end of its own message.
    if let Some(end) = location
        .and_then(|at| message.rfind(&format!(" at line {}, column {}", at.line(), at.column())))
    {
        message.truncate(end);
    }
    let problem = Problem::error(source, span.clone().unwrap_or(0..0), message);
    if span.is_some_and(|span| source.line_of(span.start).contains('\t')) {
        return problem.hint("YAML is indented with spaces, never with tabs");
    }
    problem
}

fn node(raw: Spanned<Raw>, source: &Source) -> Node {
    let start = raw
        .referenced
        .span()
        .byte_offset()
        .and_then(|offset| usize::try_from(offset).ok())
        .unwrap_or(0);
    let length = raw
        .referenced
        .span()
        .byte_len()
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(0);
    let span = source.clamp(start..start + length);
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Bool(value) => Kind::Bool(value),
        Raw::Number(value) => Kind::Number(value),
        Raw::Text(value) => Kind::Text(value),
        Raw::List(items) => Kind::List(items.into_iter().map(|item| node(item, source)).collect()),
        Raw::Map(entries) => Kind::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key_start = key.referenced.span().byte_offset();
                    let start = key_start
                        .and_then(|offset| usize::try_from(offset).ok())
                        .unwrap_or(0);
                    Entry {
                        key_span: source.clamp(start..start + key.value.len()),
                        key: key.value,
                        value: node(value, source),
                    }
                })
                .collect(),
        ),
    };
    Node { span, kind }
}

/// What the reader yields before the places are turned into byte ranges.
#[derive(Debug)]
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        Number::from_f64(value)
            .map(Raw::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> (Arc<Source>, Node) {
        let source = Arc::new(Source::new("t.yaml", text));
        let node = read(&source)
            .map_err(|problem| problem.render())
            .expect("reads");
        (source, node)
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let text = "ä: {b: [1, \"two\"]}\nlast: on\n";
        let (source, node) = tree(text);
        let inner = node.at(&["ä", "b"]).expect("found");
        assert_eq!(&source.text[inner.key_span.clone()], "b");
        let Kind::List(items) = &inner.value.kind else {
            panic!("a list")
        };
        assert_eq!(&source.text[items[1].span.clone()], "\"two\"");
        let last = node.at(&["last"]).expect("found");
        assert!(matches!(last.value.kind, Kind::Bool(true)));
        assert_eq!(&source.text[last.value.span.clone()], "on");
    }

    #[test]
    fn both_of_two_equal_keys_are_kept() {
        let (_, node) = tree("a: 1\na: 2\n");
        assert_eq!(node.entries().expect("a map").len(), 2);
    }

    #[test]
    fn numbers_are_read_as_helm_reads_them() {
        let (_, node) = tree("o: 017\nbig: 9007199254740993\nhex: 0x1F\nport: 6443\nratio: 0.5\n");
        assert_eq!(
            node.to_json().to_string(),
            r#"{"big":9007199254740993,"hex":31,"o":15,"port":6443,"ratio":0.5}"#
        );
    }
}
