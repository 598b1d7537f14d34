//! A compressed answer cannot have a secret covered: a copy of it is read along, and the answer is cut off where the secret would be whole (V4).

use super::redact::{Matcher, Patterns};
use bytes::Bytes;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use std::io::{self, Write};
use std::rc::Rc;

/// How much of a secret's beginning may have passed before the rest is waited for.
const BEGINNING: usize = 4;
/// Compressed octets that wait for that, at most.
const HELD: usize = 64 * 1024;

/// How an answer's body is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// gzip, RFC 1952.
    Gzip,
    /// What HTTP calls deflate: zlib (RFC 1950), or bare deflate as some servers send it.
    Deflate,
}

/// Why an answer does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    /// The secret is in it.
    #[error("the credential is in the compressed answer")]
    Secret,
    /// It cannot be read along.
    #[error("the answer is not coded as it says")]
    Unreadable,
}

/// Reads a coded stream along.
pub(super) struct Watch {
    decoder: Decoder,
    held: Vec<Bytes>,
    waiting: usize,
}

enum Decoder {
    Gzip(MultiGzDecoder<Ear>),
    /// Which of the two it is shows in the first octet.
    Unknown(Ear),
    Zlib(ZlibDecoder<Ear>),
    Deflate(DeflateDecoder<Ear>),
}

/// Hears what was decoded and keeps nothing of it.
struct Ear {
    matcher: Matcher,
    heard: bool,
}

impl Write for Ear {
    fn write(&mut self, decoded: &[u8]) -> io::Result<usize> {
        let heard = &mut self.heard;
        self.matcher.feed(decoded, |_, _| *heard = true);
        match self.heard {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(decoded.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Watch {
    /// At the beginning of a stream.
    pub(super) fn new(coding: Coding, patterns: Rc<Patterns>) -> Self {
        let ear = Ear { matcher: Matcher::new(patterns), heard: false };
        let decoder = match coding {
            Coding::Gzip => Decoder::Gzip(MultiGzDecoder::new(ear)),
            Coding::Deflate => Decoder::Unknown(ear),
        };
        Watch { decoder, held: Vec::new(), waiting: 0 }
    }

    /// Takes the next octets and returns what may go on, in order.
    pub(super) fn feed(&mut self, input: Bytes) -> Result<Vec<Bytes>, Stop> {
        if input.is_empty() {
            return Ok(Vec::new());
        }
        self.begin(input.first().copied());
        let read = match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.write_all(&input).and_then(|()| decoder.flush()),
            Decoder::Zlib(decoder) => decoder.write_all(&input).and_then(|()| decoder.flush()),
            Decoder::Deflate(decoder) => decoder.write_all(&input).and_then(|()| decoder.flush()),
            Decoder::Unknown(_) => Ok(()),
        };
        let Some(ear) = self.ear() else { return Err(Stop::Unreadable) };
        if ear.heard {
            return Err(Stop::Secret);
        }
        if read.is_err() {
            return Err(Stop::Unreadable);
        }
        let open = ear.matcher.open();
        self.waiting += input.len();
        self.held.push(input);
        if open < BEGINNING {
            self.waiting = 0;
            return Ok(std::mem::take(&mut self.held));
        }
        if self.waiting > HELD {
            return Err(Stop::Secret);
        }
        Ok(Vec::new())
    }

    /// What was held back when the stream ends.
    pub(super) fn finish(&mut self) -> Vec<Bytes> {
        self.waiting = 0;
        std::mem::take(&mut self.held)
    }

    /// How many octets wait.
    pub(super) fn held(&self) -> usize {
        self.waiting
    }

    fn begin(&mut self, first: Option<u8>) {
        if !matches!(self.decoder, Decoder::Unknown(_)) {
            return;
        }
        let ear = match &self.decoder {
            Decoder::Unknown(ear) => Ear { matcher: ear.matcher.clone(), heard: false },
            _ => return,
        };
        // RFC 1950 §2.2: method 8 in the low half; bare deflate begins so only with a stored block of an odd kind.
        self.decoder = match first.is_some_and(|octet| octet & 0x0f == 8 && octet >> 4 <= 7) {
            true => Decoder::Zlib(ZlibDecoder::new(ear)),
            false => Decoder::Deflate(DeflateDecoder::new(ear)),
        };
    }

    fn ear(&self) -> Option<&Ear> {
        match &self.decoder {
            Decoder::Gzip(decoder) => Some(decoder.get_ref()),
            Decoder::Zlib(decoder) => Some(decoder.get_ref()),
            Decoder::Deflate(decoder) => Some(decoder.get_ref()),
            Decoder::Unknown(ear) => Some(ear),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    const SECRET: &str = "sk-real-0123456789abcdef";

    fn coded(text: &[u8]) -> [(Coding, Vec<u8>); 3] {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(text).unwrap();
        zlib.write_all(text).unwrap();
        bare.write_all(text).unwrap();
        [
            (Coding::Gzip, gzip.finish().unwrap()),
            (Coding::Deflate, zlib.finish().unwrap()),
            (Coding::Deflate, bare.finish().unwrap()),
        ]
    }

    fn through(coding: Coding, bytes: &[u8], step: usize) -> Result<Vec<u8>, Stop> {
        let mut watch = Watch::new(coding, Patterns::of([SECRET.as_bytes()]));
        let mut out = Vec::new();
        for piece in bytes.chunks(step) {
            out.extend(watch.feed(Bytes::copy_from_slice(piece))?.concat());
        }
        out.extend(watch.finish().concat());
        Ok(out)
    }

    #[test]
    fn a_clean_answer_passes_octet_for_octet() {
        let text = "data: sk-real-0 and more\n".repeat(500);
        for (coding, bytes) in coded(text.as_bytes()) {
            for step in [1, 7, 100_000] {
                assert_eq!(through(coding, &bytes, step).unwrap(), bytes, "{coding:?} {step}");
            }
        }
    }

    #[test]
    fn a_secret_stops_the_answer() {
        let text = format!("data: {SECRET}\n");
        for (coding, bytes) in coded(text.as_bytes()) {
            for step in [1, 7, 100_000] {
                assert_eq!(through(coding, &bytes, step), Err(Stop::Secret), "{coding:?} {step}");
            }
        }
    }

    #[test]
    fn what_is_not_coded_as_it_says_stops() {
        assert_eq!(through(Coding::Gzip, b"plain text with sk-real", 5), Err(Stop::Unreadable));
    }

    #[test]
    fn a_second_member_is_read_too() {
        let [(coding, first), ..] = coded(b"harmless");
        let [(_, second), ..] = coded(SECRET.as_bytes());
        assert_eq!(through(coding, &[first, second].concat(), 9), Err(Stop::Secret));
    }
}
