//! Phantom tokens: what a container holds in a credential's place. They have the shape of the provider's own (V1), carry a mark by which any of ours is
//! known (`terok vault clean`, a token of another container), and are random otherwise.

use crate::provider::{Alphabet, Token};
use std::ops::Range;

/// In every phantom token, behind the prefix.
pub const MARK: &str = "terok";
/// In those whose alphabet is hexadecimal, where [`MARK`] has no letters: `7e20` and twice the letters `c`.
pub const MARK_HEX: &str = "7e20cccc";
/// Random characters of a token at least: 24 of the poorest alphabet are 96 bits.
pub const LEAST: usize = 24;
/// Characters of a token at most.
pub const MOST: usize = 255;

/// A token of the shape, from as many random octets as the longest has characters. A shape that is too short for
/// [`LEAST`] random characters is made longer: a definition that was checked has none.
pub fn token(shape: &Token, random: &[u8; MOST]) -> String {
    let alphabet = shape.alphabet.characters();
    // 256 is no multiple of 62: the first eight characters come a little more often, 5.7 bits each instead of 5.95.
    let draw = |octet: &u8| char::from(alphabet[usize::from(*octet) % alphabet.len()]);
    let drawn = shape.random_length().max(LEAST);
    let middle: String = random.iter().take(drawn).map(draw).collect();
    [&shape.prefix, shape.alphabet.mark(), &middle, &shape.suffix].concat()
}

/// Whether the whole of `text` is a phantom token of this shape.
pub fn is_phantom(shape: &Token, text: &str) -> bool {
    let inside = text.strip_prefix(shape.prefix.as_str()).and_then(|rest| rest.strip_suffix(&shape.suffix));
    let drawn = inside.and_then(|inside| inside.strip_prefix(shape.alphabet.mark()));
    drawn.is_some_and(|drawn| {
        drawn.len() == shape.random_length().max(LEAST)
            && drawn.bytes().all(|octet| shape.alphabet.characters().contains(&octet))
    })
}

/// Whether `text`, a credential that a request carries, is one of ours: this container's, another's or a dead one's. A
/// provider's own token holds the mark by chance once in ten million times, and is refused either way.
pub fn is_marked(text: &str) -> bool {
    marked(text, MARK) || marked(text, MARK_HEX)
}

/// Where phantom tokens of these shapes stand in `text`, none of them part of a longer run of the token's characters.
pub fn find<'a>(text: &str, shapes: impl IntoIterator<Item = &'a Token>) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for shape in shapes {
        let opening = [&shape.prefix, shape.alphabet.mark()].concat();
        let length = opening.len() + shape.random_length().max(LEAST) + shape.suffix.len();
        for (start, _) in text.match_indices(&opening) {
            let end = start + length;
            let alone = |octet: Option<&u8>| octet.is_none_or(|octet| !is_token_character(*octet));
            let before = start.checked_sub(1).and_then(|before| text.as_bytes().get(before));
            let whole = text.get(start..end).is_some_and(|token| is_phantom(shape, token));
            if whole && alone(before) && alone(text.as_bytes().get(end)) && !found.contains(&(start..end)) {
                found.push(start..end);
            }
        }
    }
    found.sort_by_key(|range| range.start);
    found
}

/// Whether at least [`LEAST`] characters of a token stand behind a mark.
fn marked(text: &str, mark: &str) -> bool {
    let enough = |rest: &str| rest.bytes().take_while(|octet| is_token_character(*octet)).count() >= LEAST;
    text.match_indices(mark).any(|(start, mark)| enough(&text[start + mark.len()..]))
}

fn is_token_character(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_')
}

impl Token {
    /// How many characters of a token are random.
    pub fn random_length(&self) -> usize {
        let fixed = self.prefix.len() + self.alphabet.mark().len() + self.suffix.len();
        self.length.min(MOST).saturating_sub(fixed)
    }
}

impl Alphabet {
    /// Its characters.
    pub fn characters(self) -> &'static [u8] {
        match self {
            Alphabet::Base62 => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            Alphabet::Base64url => b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_",
            Alphabet::Hex => b"0123456789abcdef",
        }
    }

    /// The mark that can be written with them.
    pub fn mark(self) -> &'static str {
        match self {
            Alphabet::Base62 | Alphabet::Base64url => MARK,
            Alphabet::Hex => MARK_HEX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Catalog;
    use crate::provider::{self, Carrier};
    use proptest::prelude::*;

    fn shapes() -> Vec<(String, Token)> {
        let catalog = Catalog::bundled();
        let names: Vec<&String> = catalog.providers.keys().collect();
        names
            .into_iter()
            .map(|name| (name.clone(), provider::read(&catalog, name).unwrap().token().clone()))
            .collect()
    }

    fn octets() -> impl Strategy<Value = [u8; MOST]> {
        proptest::collection::vec(any::<u8>(), MOST).prop_map(|octets| octets.try_into().unwrap())
    }

    #[test]
    fn every_bundled_provider_leaves_enough_to_chance() {
        for (name, shape) in shapes() {
            assert!(shape.random_length() >= LEAST, "{name}: {}", shape.random_length());
            assert!(shape.length <= MOST, "{name}");
        }
    }

    #[test]
    fn a_shape_that_is_too_short_is_made_longer_rather_than_guessable() {
        let short = Token {
            variables: Vec::new(),
            prefix: "sk-".into(),
            also: vec![],
            suffix: String::new(),
            length: 10,
            alphabet: Alphabet::Hex,
            carriers: vec![Carrier::Bearer],
        };
        let made = token(&short, &[7; MOST]);
        assert_eq!(made, format!("sk-{MARK_HEX}{}", "7".repeat(LEAST)));
        assert!(is_phantom(&short, &made));
    }

    #[test]
    fn a_providers_own_token_is_no_phantom() {
        for (name, shape) in shapes() {
            let own = format!("{}{}{}", shape.prefix, "a1".repeat(40), shape.suffix);
            assert!(!is_phantom(&shape, &own) && !is_marked(&own), "{name}");
            assert!(!is_marked(&format!("{}{MARK}", shape.prefix)), "{name}: a mark without a token");
        }
        assert!(!is_marked("git@terok.example: the terok project"));
    }

    proptest! {
        #[test]
        fn a_token_has_its_providers_shape_and_the_mark(octets in octets()) {
            for (name, shape) in shapes() {
                let made = token(&shape, &octets);
                prop_assert_eq!(made.len(), shape.length, "{}", name);
                prop_assert!(made.starts_with(&shape.prefix) && made.ends_with(&shape.suffix), "{}", made);
                prop_assert!(is_phantom(&shape, &made) && is_marked(&made), "{}", made);
                let middle = &made[shape.prefix.len()..made.len() - shape.suffix.len()];
                prop_assert!(middle.bytes().all(|octet| shape.alphabet.characters().contains(&octet)), "{}", made);
            }
        }

        #[test]
        fn two_starts_never_have_the_same_token(one in octets(), other in octets()) {
            for (name, shape) in shapes() {
                prop_assert_ne!(token(&shape, &one), token(&shape, &other), "{}", name);
            }
        }

        #[test]
        fn a_token_is_found_in_any_text_and_nothing_longer_is(octets in octets(), before in "[ =\"\n:]", after in "[ \"\n,]", noise in "\\PC{0,20}") {
            let shapes = shapes();
            let all = || shapes.iter().map(|(_, shape)| shape);
            for (name, shape) in &shapes {
                let made = token(shape, &octets);
                let text = format!("{noise}{before}{made}{after}{noise}");
                let start = noise.len() + before.len();
                prop_assert!(find(&text, all()).contains(&(start..start + made.len())), "{}: {}", name, text);
                for longer in [format!("x{made}"), format!("{made}x")] {
                    prop_assert!(!find(&longer, [shape]).contains(&(0..made.len())), "{}", longer);
                    prop_assert!(!is_phantom(shape, &longer));
                }
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}(terok)?\\PC{0,80}") {
            let _ = is_marked(&text);
            let _ = find(&text, shapes().iter().map(|(_, shape)| shape));
        }
    }
}
