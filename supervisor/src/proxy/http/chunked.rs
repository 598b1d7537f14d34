//! A chunked body (RFC 9112 §7.1), written anew: sizes in one spelling, extensions dropped, trailers kept.

use super::{Refusal, head};
use terok_policy::judge::Reason;

/// Longest line with a chunk's size and extensions.
const LINE_LIMIT: usize = 1024;
/// Largest trailer section.
const TRAILER_LIMIT: usize = 16 * 1024;

/// Where a chunked body stands.
pub(super) struct Chunked {
    state: State,
    /// The line or trailer section received so far.
    line: Vec<u8>,
}

enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked { state: State::Size, line: Vec::new() }
    }
}

impl Chunked {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Takes bytes of the body, up to its end; returns how many.
    pub(super) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut taken = 0;
        while let Some(rest) = input.get(taken..).filter(|rest| !rest.is_empty()) {
            taken += match &mut self.state {
                State::Done => break,
                State::Data(left) => {
                    let part = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    out.extend_from_slice(rest.get(..part).unwrap_or(rest));
                    *left -= part as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    part
                }
                State::Size | State::DataEnd | State::Trailers => self.take_line(rest, out)?,
            };
        }
        Ok(taken)
    }

    fn take_line(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        for (at, &byte) in input.iter().enumerate() {
            let after_cr = self.line.last() == Some(&b'\r');
            if after_cr != (byte == b'\n') {
                return Err(Refusal::bad("a line of a chunked body that does not end with CR LF"));
            }
            let limit = match self.state {
                State::DataEnd => 2,
                State::Trailers => TRAILER_LIMIT,
                _ => LINE_LIMIT,
            };
            if self.line.len() >= limit {
                return Err(match self.state {
                    State::DataEnd => Refusal::bad("a chunk longer than its size"),
                    _ => Refusal::new(Reason::TooLarge, "an endless line in a chunked body"),
                });
            }
            self.line.push(byte);
            if byte == b'\n' && self.end_of_line(out)? {
                return Ok(at + 1);
            }
        }
        Ok(input.len())
    }

    /// Whether the complete line ends this step of the body.
    fn end_of_line(&mut self, out: &mut Vec<u8>) -> Result<bool, Refusal> {
        self.state = match self.state {
            State::Size => match size(&self.line)? {
                0 => {
                    out.extend_from_slice(b"0\r\n");
                    State::Trailers
                }
                size => {
                    out.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    State::Data(size)
                }
            },
            State::DataEnd if self.line == b"\r\n" => {
                out.extend_from_slice(b"\r\n");
                State::Size
            }
            State::DataEnd => return Err(Refusal::bad("a chunk longer than its size")),
            State::Trailers if self.line == b"\r\n" || self.line.ends_with(b"\r\n\r\n") => {
                trailers(&self.line, out)?;
                State::Done
            }
            State::Trailers => return Ok(false),
            State::Data(_) | State::Done => return Ok(true),
        };
        self.line.clear();
        Ok(true)
    }
}

fn size(line: &[u8]) -> Result<u64, Refusal> {
    const BAD: &str = "a chunk size that is no hexadecimal number";
    let line = line.strip_suffix(b"\r\n").ok_or(Refusal::bad(BAD))?;
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if !(1..=15).contains(&digits) || !(rest.is_empty() || rest.starts_with(b";")) {
        return Err(Refusal::bad(BAD));
    }
    std::str::from_utf8(number).ok().and_then(|n| u64::from_str_radix(n, 16).ok()).ok_or(Refusal::bad(BAD))
}

fn trailers(section: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    match httparse::parse_headers(section, &mut headers) {
        Ok(httparse::Status::Complete((length, fields))) if length == section.len() => {
            if fields.iter().any(|field| head::is_framing(field.name)) {
                return Err(Refusal::bad("a trailer field of routing or framing"));
            }
            out.extend_from_slice(section);
            Ok(())
        }
        _ => Err(Refusal::bad("malformed trailers")),
    }
}
