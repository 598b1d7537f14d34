//! Finds a credential in what an upstream sends, however it is cut into pieces, and covers it with asterisks: as it is, in base64 at any of its three
//! offsets, percent-encoded, and as a text in JSON or HTML (V4). No more is held back than what may be the beginning of it.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use zeroize::Zeroizing;

/// Shorter secrets would cover ordinary words: the vault takes none that short for a key.
const SHORTEST: usize = 6;
/// Shortest form that is looked for in base64.
const SHORTEST_CODED: usize = 8;

/// What to look for: an automaton over octets (Aho and Corasick), complete, so that each octet is one step.
pub(super) struct Patterns {
    /// Column of each octet; 0: in no pattern.
    class: [u8; 256],
    classes: usize,
    /// Next node by node and column.
    next: Vec<u16>,
    /// Of each node: length of the longest pattern that ends here, or 0.
    ends: Vec<u16>,
    /// Of each node: how many octets before it may still become a pattern.
    open: Vec<u16>,
}

/// A stream's place in the patterns.
#[derive(Clone)]
pub(super) struct Matcher {
    patterns: Rc<Patterns>,
    node: u16,
}

impl Patterns {
    /// The forms of `secrets`.
    pub(super) fn of<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Rc<Self> {
        let mut forms = BTreeSet::new();
        for secret in secrets.into_iter().filter(|secret| secret.len() >= SHORTEST) {
            forms.extend(forms_of(secret));
        }
        let forms: Vec<Zeroizing<Vec<u8>>> = forms.into_iter().map(Zeroizing::new).collect();
        Rc::new(Self::build(&forms))
    }

    fn build(forms: &[Zeroizing<Vec<u8>>]) -> Self {
        let mut class = [0u8; 256];
        let mut classes = 1usize;
        for &octet in forms.iter().flat_map(|form| form.iter()) {
            if let Some(column @ 0) = class.get_mut(usize::from(octet)) {
                // At most 255 octets differ from one another beside the one that a pattern's end needs none of.
                *column = u8::try_from(classes).unwrap_or(u8::MAX);
                classes += 1;
            }
        }
        let mut this = Patterns { class, classes, next: vec![0; classes], ends: vec![0], open: vec![0] };
        let mut depth = vec![0u16];
        for form in forms {
            let mut node = 0;
            for &octet in form.iter() {
                let column = this.column(octet);
                node = match this.step(node, column) {
                    0 => {
                        let new = u16::try_from(this.ends.len()).unwrap_or(u16::MAX);
                        if new == u16::MAX {
                            // A secret of tens of kilobytes: what fits is looked for.
                            break;
                        }
                        this.next.resize(this.next.len() + classes, 0);
                        this.ends.push(0);
                        this.open.push(0);
                        depth.push(depth.get(usize::from(node)).map_or(1, |depth| depth + 1));
                        this.set(node, column, new);
                        new
                    }
                    known => known,
                };
            }
            if let (Some(end), Some(length)) =
                (this.ends.get_mut(usize::from(node)), depth.get(usize::from(node)))
            {
                *end = *length;
            }
        }
        this.complete(&depth);
        this
    }

    /// Fills in where each node goes on with an octet that continues no pattern of its own: breadth first, so that what it falls back to is complete.
    fn complete(&mut self, depth: &[u16]) {
        let mut back = vec![0u16; self.ends.len()];
        let mut waiting: VecDeque<u16> =
            (0..self.classes).map(|column| self.step(0, column)).filter(|&node| node != 0).collect();
        while let Some(node) = waiting.pop_front() {
            let at = usize::from(node);
            let fallback = back.get(at).copied().unwrap_or(0);
            let inherited = self.ends.get(usize::from(fallback)).copied().unwrap_or(0);
            if let Some(end) = self.ends.get_mut(at) {
                *end = (*end).max(inherited);
            }
            let mut leaf = true;
            for column in 0..self.classes {
                let beyond = self.step(fallback, column);
                match self.step(node, column) {
                    0 => self.set(node, column, beyond),
                    child => {
                        leaf = false;
                        if let Some(back) = back.get_mut(usize::from(child)) {
                            *back = beyond;
                        }
                        waiting.push_back(child);
                    }
                }
            }
            // Behind a whole pattern only what the fallback hopes for is open.
            let hope = match leaf {
                true => self.open.get(usize::from(fallback)).copied().unwrap_or(0),
                false => depth.get(at).copied().unwrap_or(0),
            };
            if let Some(open) = self.open.get_mut(at) {
                *open = hope;
            }
        }
    }

    fn column(&self, octet: u8) -> usize {
        self.class.get(usize::from(octet)).copied().unwrap_or(0).into()
    }

    fn step(&self, node: u16, column: usize) -> u16 {
        self.next.get(usize::from(node) * self.classes + column).copied().unwrap_or(0)
    }

    fn set(&mut self, node: u16, column: usize, to: u16) {
        if let Some(next) = self.next.get_mut(usize::from(node) * self.classes + column) {
            *next = to;
        }
    }
}

/// A table of steps holds the secret, more or less.
impl Drop for Patterns {
    fn drop(&mut self) {
        use zeroize::Zeroize as _;
        self.next.zeroize();
        self.class.zeroize();
    }
}

/// The secret as it may stand in a text.
fn forms_of(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms =
        vec![secret.to_vec(), percent(secret, b"0123456789ABCDEF"), percent(secret, b"0123456789abcdef")];
    forms.extend(TEXTS.map(|escape| secret.iter().flat_map(|&octet| escape(octet)).collect()));
    for offset in 0..3 {
        // What stands before and behind shares the first and the last character with it: those in between are its alone.
        let padded = Zeroizing::new([&[0; 3][..offset], secret].concat());
        let first = (offset * 8).div_ceil(6);
        let last = (padded.len() * 8) / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let coded = engine.encode(&*padded);
            forms.extend(
                coded
                    .get(first..last)
                    .filter(|core| core.len() >= SHORTEST_CODED)
                    .map(|core| core.as_bytes().to_vec()),
            );
        }
    }
    forms
}

/// How writers of JSON and HTML escape a character of a text; most keys have none that they would.
const TEXTS: [fn(u8) -> Vec<u8>; 5] = [
    // As RFC 8259 needs it.
    |octet| match octet {
        b'"' | b'\\' => vec![b'\\', octet],
        _ => vec![octet],
    },
    // PHP.
    |octet| match octet {
        b'"' | b'\\' | b'/' => vec![b'\\', octet],
        _ => vec![octet],
    },
    // Go, and Rails.
    |octet| match octet {
        b'"' | b'\\' => vec![b'\\', octet],
        b'<' | b'>' | b'&' => format!("\\u{octet:04x}").into_bytes(),
        _ => vec![octet],
    },
    // .NET.
    |octet| match octet {
        b'\\' => vec![b'\\', octet],
        b'"' | b'&' | b'\'' | b'+' | b'<' | b'>' | b'`' => format!("\\u{octet:04X}").into_bytes(),
        _ => vec![octet],
    },
    |octet| match octet {
        b'&' => b"&amp;".to_vec(),
        b'<' => b"&lt;".to_vec(),
        b'>' => b"&gt;".to_vec(),
        b'"' => b"&quot;".to_vec(),
        b'\'' => b"&#39;".to_vec(),
        _ => vec![octet],
    },
];

fn percent(secret: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let mut coded = Vec::with_capacity(secret.len());
    for &octet in secret {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            coded.push(octet);
        } else {
            coded.extend([b'%', digits[usize::from(octet >> 4)], digits[usize::from(octet & 15)]]);
        }
    }
    coded
}

impl Matcher {
    /// At the beginning of a stream.
    pub(super) fn new(patterns: Rc<Patterns>) -> Self {
        Matcher { patterns, node: 0 }
    }

    /// Reads on; calls `found` with the position behind each occurrence and its length.
    pub(super) fn feed(&mut self, input: &[u8], mut found: impl FnMut(usize, usize)) {
        let patterns = &*self.patterns;
        let mut node = self.node;
        for (at, &octet) in input.iter().enumerate() {
            let column = patterns.column(octet);
            if node == 0 && column == 0 {
                continue;
            }
            node = patterns.step(node, column);
            match patterns.ends.get(usize::from(node)) {
                None | Some(0) => {}
                Some(&length) => found(at + 1, length.into()),
            }
        }
        self.node = node;
    }

    /// How many of the last octets may be the beginning of a secret.
    pub(super) fn open(&self) -> usize {
        self.patterns.open.get(usize::from(self.node)).copied().unwrap_or(0).into()
    }
}

/// A stream whose secrets are covered.
pub(super) struct Redactor {
    matcher: Matcher,
    held: BytesMut,
    covered: u64,
}

impl Redactor {
    /// At the beginning of a stream.
    pub(super) fn new(patterns: Rc<Patterns>) -> Self {
        Redactor { matcher: Matcher::new(patterns), held: BytesMut::new(), covered: 0 }
    }

    /// Takes the next octets and returns what may go on.
    pub(super) fn feed(&mut self, input: Bytes) -> Bytes {
        let mut marks = Vec::new();
        self.matcher.feed(&input, |end, length| marks.push((end, length)));
        self.covered += marks.len() as u64;
        let open = self.matcher.open();
        if marks.is_empty() && self.held.is_empty() {
            let (free, held) =
                input.split_at_checked(input.len().saturating_sub(open)).unwrap_or((&input, &[]));
            self.held.extend_from_slice(held);
            return input.slice(..free.len());
        }
        let before = self.held.len();
        self.held.extend_from_slice(&input);
        for (end, length) in marks {
            let end = before + end;
            if let Some(secret) = self.held.get_mut(end.saturating_sub(length)..end) {
                secret.fill(b'*');
            }
        }
        let free = self.held.len().saturating_sub(open);
        self.held.split_to(free).freeze()
    }

    /// What was held back when the stream ends.
    pub(super) fn finish(&mut self) -> Bytes {
        self.matcher.node = 0;
        std::mem::take(&mut self.held).freeze()
    }

    /// How many octets wait.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// How many secrets were covered.
    pub(super) fn covered(&self) -> u64 {
        self.covered
    }
}

/// `value` with its secrets covered, or `None` where it has none.
pub(super) fn covered(patterns: &Rc<Patterns>, value: &[u8]) -> Option<Vec<u8>> {
    let mut marks = Vec::new();
    Matcher::new(patterns.clone()).feed(value, |end, length| marks.push((end, length)));
    if marks.is_empty() {
        return None;
    }
    let mut clean = value.to_vec();
    for (end, length) in marks {
        if let Some(secret) = clean.get_mut(end.saturating_sub(length)..end) {
            secret.fill(b'*');
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"sk-real-ABAB/+key=with%odd?byteZ";

    fn through(pieces: &[&[u8]]) -> Vec<u8> {
        let mut redactor = Redactor::new(Patterns::of([SECRET]));
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&redactor.feed(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&redactor.finish());
        out
    }

    #[test]
    fn a_secret_is_covered_however_it_is_cut() {
        let text = [b"before sk-real-A ", SECRET, b" between ", SECRET, SECRET, b" after sk-"].concat();
        let stars = "*".repeat(SECRET.len());
        let clean = format!("before sk-real-A {stars} between {stars}{stars} after sk-").into_bytes();
        for size in 1..text.len() {
            assert_eq!(through(&text.chunks(size).collect::<Vec<_>>()), clean, "{size}");
        }
    }

    #[test]
    fn base64_at_every_offset_and_percent_encoding_are_covered() {
        for before in ["", "a", "ab", "abc", "user:"] {
            for after in ["", "x", "xy", "xyz"] {
                let plain = [before.as_bytes(), SECRET, after.as_bytes()].concat();
                for coded in [STANDARD.encode(&plain), URL_SAFE_NO_PAD.encode(&plain)] {
                    let out = through(&[coded.as_bytes()]);
                    assert_eq!(out.len(), coded.len());
                    let left = out.iter().filter(|b| **b != b'*').count();
                    assert!(
                        left <= 4 + (before.len() + after.len()) * 4 / 3 + 4,
                        "{coded} {}",
                        String::from_utf8_lossy(&out)
                    );
                    assert!(out.windows(30).any(|w| w.iter().all(|b| *b == b'*')));
                }
            }
        }
        let coded =
            b"q=sk-real-ABAB%2f%2bkey%3dwith%25odd%3fbyteZ&r=sk-real-ABAB%2F%2Bkey%3Dwith%25odd%3FbyteZ";
        assert!(!String::from_utf8(through(&[coded])).unwrap().contains("real"));
    }

    #[test]
    fn a_secret_in_a_text_of_json_or_html_is_covered() {
        let secret = b"p\"a\\ss/wo+rd&<'>`";
        for (form, writer) in [
            (r#"p\"a\\ss/wo+rd&<'>`"#, "JSON"),
            (r#"p\"a\\ss\/wo+rd&<'>`"#, "PHP"),
            (r#"p\"a\\ss/wo+rd\u0026\u003c'\u003e`"#, "Go"),
            (r#"p\u0022a\\ss/wo\u002Brd\u0026\u003C\u0027\u003E\u0060"#, ".NET"),
            (r#"p&quot;a\ss/wo+rd&amp;&lt;&#39;&gt;`"#, "HTML"),
        ] {
            let mut redactor = Redactor::new(Patterns::of([&secret[..]]));
            let out = [redactor.feed(Bytes::copy_from_slice(form.as_bytes())), redactor.finish()].concat();
            assert_eq!(out, "*".repeat(form.len()).as_bytes(), "{writer}");
        }
    }

    #[test]
    fn what_begins_no_secret_is_not_held_back() {
        let mut redactor = Redactor::new(Patterns::of([SECRET]));
        let out = redactor.feed(Bytes::from_static(b"data: {\"a\":1}\n\n"));
        assert_eq!((&out[..], redactor.held()), (&b"data: {\"a\":1}\n\n"[..], 0));
        assert_eq!(&redactor.feed(Bytes::from_static(b"x sk-re"))[..], b"x ");
        assert_eq!(redactor.held(), 5);
        assert_eq!(&redactor.feed(Bytes::from_static(b"!"))[..], b"sk-re!");
        // A whole secret is behind us: nothing can become of it any more.
        assert_eq!(redactor.feed(Bytes::from_static(SECRET)).len(), SECRET.len());
        assert_eq!((redactor.held(), redactor.covered()), (0, 1));
    }

    #[test]
    fn a_word_is_no_secret() {
        let mut redactor = Redactor::new(Patterns::of([&b"pass"[..]]));
        assert_eq!(&redactor.feed(Bytes::from_static(b"password"))[..], b"password");
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_search_of_the_whole(
            secret in "[ab]{6,9}", text in "[abc]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6)
        ) {
            let patterns = Patterns::of([secret.as_bytes()]);
            let mut expected = text.clone().into_bytes();
            for at in 0..text.len() {
                if text[at..].starts_with(&secret) {
                    expected[at..at + secret.len()].fill(b'*');
                }
            }
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut <= text.len()).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let (mut redactor, mut from, mut out) = (Redactor::new(patterns), 0, Vec::new());
            for cut in cuts {
                out.extend_from_slice(&redactor.feed(Bytes::copy_from_slice(&text.as_bytes()[from..cut])));
                from = cut;
            }
            out.extend_from_slice(&redactor.finish());
            prop_assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(expected).unwrap());
        }
    }
}
