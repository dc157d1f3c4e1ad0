//! containerd's filters, by which a client says which snapshots it wants to see.
//!
//! ```text
//! name==foo                                  equal; != for not equal
//! parent~=/^sha256:/                         matches the regular expression
//! labels."containerd.io/gc.root"             is there
//! kind==active,labels.owner!=me              both
//! ```
//!
//! Of several filters one is enough, and none lets everything through. The grammar is that of containerd's `pkg/filters`, with
//! what it takes and refuses: a field or value in `"` has the escapes of a Go string, and after `~=` it may be in `/` or `|`,
//! too. What isn't there has the value "", which `!=` and `~=` look at.
//!
//! Each snapshot is held against all of them: so there may be only so much of them ([`MOST_BYTES`], [`MOST_PATTERNS`]).

use std::iter::Peekable;
use std::str::CharIndices;

use regex::{Regex, RegexBuilder};

use crate::engine::containerd::{SnapshotInfo, SnapshotKind};
use crate::{Error, Kind, Result};

/// Bytes of all filters of a request together. containerd's own clients have a line.
const MOST_BYTES: usize = 32 << 10;
/// Regular expressions in all of them, and bytes that each may take when it is compiled: a few characters can make many.
const MOST_PATTERNS: usize = 16;
const LARGEST_PATTERN: usize = 1 << 20;
/// How much of a filter its error shows.
const SHOWN: usize = 200;

/// What is looked for: any of these.
#[derive(Debug)]
pub(super) struct Filters(Vec<Filter>);

/// All of these.
type Filter = Vec<Selector>;

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// # Errors
    /// `Invalid` with the place where one is wrong, or if they are too much.
    pub(super) fn parse(filters: &[String]) -> Result<Self> {
        let bytes = filters.iter().map(|text| text.len().max(1)).sum::<usize>();
        if bytes > MOST_BYTES {
            return Err(Error::new(
                Kind::Invalid,
                format!("filters of {bytes} bytes: at most {MOST_BYTES} are read"),
            ));
        }
        let mut patterns = 0;
        filters.iter().map(|text| Parser::new(text, &mut patterns).filter()).collect::<Result<_>>().map(Self)
    }

    pub(super) fn let_through(&self, info: &SnapshotInfo) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.iter().all(|selector| selector.selects(info)))
    }
}

impl Selector {
    fn selects(&self, info: &SnapshotInfo) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted.as_str()),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }
}

/// A field of a snapshot: a parent is there even where there is none, and is "" then.
fn field<'a>(info: &'a SnapshotInfo, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&info.name),
        "parent" => Some(info.parent.as_deref().unwrap_or_default()),
        "kind" => Some(match info.kind {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }),
        "labels" => info.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    /// Those of this filter and of the ones before it.
    patterns: &'a mut usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, patterns: &'a mut usize) -> Self {
        Self { text, rest: text.char_indices().peekable(), patterns }
    }

    fn filter(mut self) -> Result<Filter> {
        let mut selectors = Vec::new();
        // An empty one lets everything through.
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            if self.peek().is_none() {
                return Ok(selectors);
            }
            self.expect(',')?;
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.rest.next();
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector { path, test: Test::Present });
        }
        self.skip_spaces();
        let test = match self.run(is_operator).as_str() {
            "==" => Test::Equal(self.value("\"")?),
            "!=" => Test::NotEqual(self.value("\"")?),
            "~=" => {
                let pattern = self.value("\"/|")?;
                Test::Matches(self.regex(&pattern)?)
            }
            _ => return Err(self.wrong("expected ==, != or ~=")),
        };
        Ok(Selector { path, test })
    }

    fn regex(&mut self, pattern: &str) -> Result<Regex> {
        *self.patterns += 1;
        if *self.patterns > MOST_PATTERNS {
            return Err(self.wrong(&format!("at most {MOST_PATTERNS} regular expressions are taken")));
        }
        let compiled = RegexBuilder::new(pattern).size_limit(LARGEST_PATTERN).dfa_size_limit(LARGEST_PATTERN).build();
        compiled.map_err(|e| self.wrong(&format!("no regular expression: {e}")))
    }

    fn field(&mut self) -> Result<String> {
        self.skip_spaces();
        if self.peek() == Some('"') {
            return self.quoted();
        }
        let name = self.run(|c| c == '_' || c.is_ascii_alphanumeric());
        if name.is_empty() { Err(self.wrong("expected a field")) } else { Ok(name) }
    }

    /// A word, or text in one of the quotes.
    fn value(&mut self, quotes: &str) -> Result<String> {
        self.skip_spaces();
        match self.peek() {
            Some(c) if quotes.contains(c) => self.quoted(),
            Some(c) if !is_operator(c) && !"\"/|.,".contains(c) => {
                Ok(self.run(|c| c != ',' && !c.is_whitespace() && !c.is_control()))
            }
            _ => Err(self.wrong("expected a value")),
        }
    }

    fn quoted(&mut self) -> Result<String> {
        let Some((_, quote)) = self.rest.next() else { return Err(self.wrong("expected a quote")) };
        // Of bytes, which escapes may name one by one.
        let mut bytes = Vec::new();
        loop {
            match self.rest.next() {
                Some((_, c)) if c == quote => break,
                Some((_, '\\')) => self.escape(quote, &mut bytes)?,
                None | Some((_, '\n' | '\0')) => return Err(self.wrong("the quote doesn't end")),
                Some((_, c)) => push(&mut bytes, c),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.wrong("what is quoted is no UTF-8"))
    }

    fn escape(&mut self, quote: char, bytes: &mut Vec<u8>) -> Result<()> {
        let Some((_, c)) = self.rest.next() else { return Err(self.wrong("the quote doesn't end")) };
        match c {
            'a' => bytes.push(7),
            'b' => bytes.push(8),
            't' => bytes.push(b'\t'),
            'n' => bytes.push(b'\n'),
            'v' => bytes.push(11),
            'f' => bytes.push(12),
            'r' => bytes.push(b'\r'),
            '\\' => bytes.push(b'\\'),
            c if c == quote => push(bytes, c),
            '0'..='7' => {
                let first = c.to_digit(8).unwrap_or_default();
                let byte = u8::try_from(first * 64 + self.digits(2, 8)?).map_err(|_| self.wrong("no byte"))?;
                bytes.push(byte);
            }
            // Two digits are a byte.
            'x' => bytes.push(self.digits(2, 16)? as u8),
            'u' | 'U' => {
                let number = self.digits(if c == 'u' { 4 } else { 8 }, 16)?;
                push(bytes, char::from_u32(number).ok_or_else(|| self.wrong("no character"))?);
            }
            _ => return Err(self.wrong("no such escape")),
        }
        Ok(())
    }

    fn digits(&mut self, count: u32, base: u32) -> Result<u32> {
        let mut number = 0_u32;
        for _ in 0..count {
            let digit = self.rest.next().and_then(|(_, c)| c.to_digit(base));
            // Eight of 16 fit.
            number = number * base + digit.ok_or_else(|| self.wrong("too few digits"))?;
        }
        Ok(number)
    }

    /// As many of these as there are.
    fn run(&mut self, belongs: impl Fn(char) -> bool) -> String {
        std::iter::from_fn(|| self.rest.next_if(|(_, c)| belongs(*c))).map(|(_, c)| c).collect()
    }

    fn skip_spaces(&mut self) {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn expect(&mut self, wanted: char) -> Result<()> {
        match self.rest.next_if(|(_, c)| *c == wanted) {
            Some(_) => Ok(()),
            None => Err(self.wrong(&format!("expected {wanted:?}"))),
        }
    }

    fn wrong(&mut self, why: &str) -> Error {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        let cut = self.text.char_indices().nth(SHOWN).map_or(self.text.len(), |(cut, _)| cut);
        let more = if cut < self.text.len() { "..." } else { "" };
        Error::new(Kind::Invalid, format!("filter {:?}{more}, at byte {at}: {why}", &self.text[..cut]))
    }
}

fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> SnapshotInfo {
        let labels = [("foo", "bar"), ("a.b/c", "x y"), ("dotted.name", "1"), ("q\"uote", "ü")];
        SnapshotInfo {
            name: "default/1/a name".to_string(),
            parent: None,
            kind: SnapshotKind::Active,
            created: jiff::Timestamp::UNIX_EPOCH,
            updated: jiff::Timestamp::UNIX_EPOCH,
            labels: labels.map(|(key, value)| (key.to_string(), value.to_string())).into(),
        }
    }

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&filters).expect("a filter").let_through(&snapshot())
    }

    #[test]
    fn what_they_let_through() {
        for filter in [
            "",
            "name",
            "parent",
            "kind==active",
            "kind == active",
            "kind!=view",
            "parent==\"\"",
            "name==\"default/1/a name\"",
            "name ~= \"^default/\"",
            "name~=/^default\\/1\\//",
            "name~=|1/a name$|",
            "name~=a.n[a-m]+e",
            "name~=(?i)DEFAULT",
            "labels.foo",
            "labels.foo==bar",
            "labels.foo!=baz",
            "labels.\"a.b/c\"",
            "labels.\"a.b/c\"==\"x y\"",
            "labels.\"a.b/c\"==\"x\\x20\\u0079\"",
            "labels.dotted.name==1",
            "labels. \"dotted\". name",
            "labels.\"q\\\"uote\"==ü",
            "labels.\"q\\\"uote\"==\"\\303\\274\"",
            "labels.none!=x",
            "labels.none~=^$",
            "none!=x",
            "name,labels.foo==bar, kind==active",
        ] {
            assert!(passes(&[filter]), "{filter}");
        }
        assert!(passes(&[]));
        assert!(passes(&["kind==view", "labels.foo"]), "one is enough");
    }

    #[test]
    fn what_they_keep_out() {
        for filter in [
            "none",
            "labels",
            "labels.none",
            "labels.none==\"\"",
            "kind==Active",
            "kind==committed",
            "parent!=\"\"",
            "name.x==y",
            "name~=^1",
            "labels.foo==bar,kind==view",
        ] {
            assert!(!passes(&[filter]), "{filter}");
        }
        assert!(!passes(&["kind==view", "labels.none"]));
    }

    #[test]
    fn what_is_no_filter() {
        for filter in [
            " ",
            ",",
            "name,",
            "name==foo,",
            "name==foo ",
            "name ",
            "name .x",
            "name==",
            "name=foo",
            "name===foo",
            "name=~foo",
            "name<foo",
            "na-me==x",
            "labels.",
            "labels..x",
            "labels.a/b",
            "labels.|a|",
            "name==/x/",
            "name==|x|",
            "name==.x",
            "name==\"x",
            "name==\"x\"y",
            "name==\"x\ny\"",
            "name==\"\\d\"",
            "name==\"\\/\"",
            "name==\"\\x2\"",
            "name==\"\\400\"",
            "name==\"\\xff\"",
            "name==\"\\ud800\"",
            "name==\"\\U00110000\"",
            "name==x y",
            "name~=/\\d/",
            "name~=/a(/",
            "name~=(a{1000}){1000}",
            "name\0",
        ] {
            let error = Filters::parse(&[filter.to_string()]).expect_err(filter);
            assert_eq!(error.kind(), Kind::Invalid, "{filter}");
            assert!(error.to_string().starts_with("filter \""), "{error}");
        }
        let long = format!("name=={}/", "x".repeat(1000));
        let error = Filters::parse(&[long + " "]).expect_err("a space").to_string();
        assert!(error.len() < 300 && error.contains("x\"..., at byte "), "{error}");
        let two = ["name".to_string(), "name==".to_string()];
        assert_eq!(
            Filters::parse(&two).expect_err("the second").to_string(),
            "filter \"name==\", at byte 6: expected a value"
        );
    }
    #[test]
    fn there_may_be_only_so_much_of_them() {
        let patterns = |count: usize| vec!["name~=/[a-z]{10}/".to_string(); count];
        assert!(Filters::parse(&patterns(MOST_PATTERNS)).is_ok());
        let text = "x".repeat(MOST_BYTES - 6);
        assert!(Filters::parse(&[format!("name=={text}")]).is_ok());
        for (filters, why) in [
            (patterns(MOST_PATTERNS + 1), "at most 16 regular expressions"),
            (vec!["name~=a,".repeat(MOST_PATTERNS) + "name~=a"], "at most 16 regular expressions"),
            (vec![r"name~=/(\\w{100}){10}/".to_string()], "size limit"),
            (vec![format!("name=={text}x")], "at most 32768 are read"),
            (vec![String::new(); MOST_BYTES + 1], "at most 32768 are read"),
        ] {
            let error = Filters::parse(&filters).expect_err(why);
            let told = error.to_string();
            assert!(error.kind() == Kind::Invalid && told.contains(why) && told.len() < 1000, "{told}");
        }
    }
}
