//! The image of `doctor`'s container: a tar archive that holds one static program.

/// The name of the program in the image.
pub(crate) const PROGRAM: &str = terok_policy::layout::LAUNCHER;

/// Whether an ELF program asks for no interpreter (elf(5): no PT_INTERP program header).
pub(crate) fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| program.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let word = |at: usize| program.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // ELF64 little endian: e_phoff at 32 (headers lie below 4 GiB), e_phentsize at 54, e_phnum at 56.
    let (Some(offset), Some(size), Some(count)) = (word(32), half(54), half(56)) else { return false };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    program.starts_with(b"\x7fELF\x02\x01")
        && (0..count).all(|n| word(offset.saturating_add(n * size)) != Some(PT_INTERP))
}

/// A tar archive (POSIX ustar) with one executable file and the folders a container needs.
pub(crate) fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Vec::with_capacity(content.len() + 8192);
    for folder in ["proc/", "sys/", "dev/", "etc/", "run/", "tmp/"] {
        tar.extend(header(folder, b'5', 0o755, 0));
    }
    tar.extend(header(name, b'0', 0o755, content.len()));
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn header(name: &str, kind: u8, mode: u32, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(257, "ustar");
    put(263, "00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_reads_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        std::fs::write(&path, archive("terok", b"hello")).unwrap();
        let list = Command::new("tar").arg("-tvf").arg(&path).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("-rwxr-xr-x") && list.contains(" 5 ") && list.ends_with("terok\n"), "{list}");
        let text = Command::new("tar").arg("-xOf").arg(&path).arg("terok").output().unwrap();
        assert_eq!(text.stdout, b"hello");
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(!is_static(&std::fs::read("/bin/ls").unwrap()));
        assert!(!is_static(b"#!/bin/sh\n"));
        if let Ok(busybox) = std::fs::read("/usr/lib/busybox/bin/busybox-static") {
            assert!(is_static(&busybox));
        }
    }
}
