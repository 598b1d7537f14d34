//! Phantom tokens: what a container holds in a credential's place. They have the shape of the provider's own (V1), carry a mark by which any of ours is
//! known (`terok vault clean`, a token of another container), and are random otherwise.

use crate::provider::Token;

/// In every phantom token, behind the prefix.
pub const MARK: &str = "terok";
/// In those whose alphabet is hexadecimal, where [`MARK`] has no letters: `7e20` and twice the letters `c`.
pub const MARK_HEX: &str = "7e20cccc";

/// A token of the shape, from `random`: at least as many octets as the shape has characters.
pub fn token(shape: &Token, random: &[u8]) -> String {
    let _ = (shape, random);
    todo!()
}

/// Whether `text` holds a phantom token of whatever provider, at most this and nothing longer on either side.
pub fn is_phantom(shape: &Token, text: &str) -> bool {
    let _ = (shape, text);
    todo!()
}
