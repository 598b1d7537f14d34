//! A sealed piece of memory as a descriptor: what one program hands to the next cannot be changed on the way.

use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// `content` in a sealed memfd, close-on-exec, positioned at its start.
pub fn sealed(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
        .map_err(Error::call("memfd_create", name))?;
    let mut file = File::from(fd);
    file.write_all(content).and_then(|()| file.rewind()).map_err(Error::io("write memfd", name))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS)).map_err(Error::call("seal memfd", name))?;
    Ok(file.into())
}

/// The content of a sealed memfd of at most `limit` octets; anything that is not sealed is refused.
pub fn read_sealed(fd: OwnedFd, limit: u64) -> Result<Vec<u8>> {
    let untrusted =
        |reason: &str| Error::Untrusted { path: "handed-over memfd".into(), reason: reason.into() };
    let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(|_| untrusted("is not a memfd"))?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(untrusted("is not sealed"));
    }
    let mut file = File::from(fd);
    let mut content = Vec::new();
    file.rewind()
        .and_then(|()| (&mut file).take(limit + 1).read_to_end(&mut content))
        .map_err(Error::io("read", "memfd"))?;
    if content.len() as u64 > limit {
        return Err(untrusted("is too large"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_memory_is_read_back_and_cannot_be_changed() {
        let fd = sealed("test", b"plan").unwrap();
        let mut file = File::from(fd.try_clone().unwrap());
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
        assert_eq!(read_sealed(fd, 4).unwrap(), b"plan");
    }

    #[test]
    fn unsealed_or_too_large_memory_is_refused() {
        let open = memfd_create("open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        assert!(read_sealed(open, 10).is_err());
        assert!(read_sealed(sealed("test", b"plans").unwrap(), 4).is_err());
        assert!(read_sealed(File::open("/dev/null").unwrap().into(), 4).is_err());
    }
}
