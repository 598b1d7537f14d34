//! What many large bodies at once take of memory: no more than little ones. In a process of its own, whose peak nobody else's tests raise.

use super::*;
use std::process::Command;

const STREAMS: usize = 10;
/// Windows and buffers of all streams, not their bodies.
const BOUND: u64 = 24 << 20;
/// Set in that process: MiB of each body, up and down.
const ALONE: &str = "TEROK_TEST_ALONE_MIB";

#[test]
fn ten_large_bodies_up_and_down_at_once_take_no_memory_of_their_size() {
    if let Ok(size) = std::env::var(ALONE) {
        return carry(size.parse::<usize>().unwrap() << 20);
    }
    let name = "broker::tests::bulk::ten_large_bodies_up_and_down_at_once_take_no_memory_of_their_size";
    let mut program = Command::new(std::env::current_exe().unwrap());
    let done = program.args(["--exact", name, "--nocapture"]).env(ALONE, "8").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "{done:?}");
}

#[tokio::main(flavor = "current_thread")]
async fn carry(size: usize) {
    local! {
        let rig = Rig::new();
        rig.upstream(move |mut stream| async move {
            // The head: its length is known, and the body is octets of one kind.
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut from, mut to) = stream.split();
            let up = drain(&mut from, size);
            let down = fill(&mut to, size);
            tokio::join!(up, down);
        })
        .await;
        let before = peak();
        let head = rig.get("/plain/v1", &format!("Content-Length: {size}\r\n")).replacen("GET", "POST", 1);
        let mut under_way = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut client, head) = (rig.base().await, head.clone());
            under_way.spawn_local(async move {
                client.write_all(head.as_bytes()).await.unwrap();
                let (mut from, mut to) = client.split();
                let down = async {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(from.read_u8().await.unwrap());
                    }
                    drain(&mut from, size).await;
                };
                tokio::join!(fill(&mut to, size), down);
            });
        }
        while let Some(ended) = under_way.join_next().await {
            ended.unwrap();
        }
        let grown = peak() - before;
        assert!(grown < BOUND, "{} KiB more", grown >> 10);
    }
}

async fn fill(to: &mut (impl tokio::io::AsyncWrite + Unpin), mut left: usize) {
    let piece = [b'x'; 16 << 10];
    while left > 0 {
        let length = left.min(piece.len());
        to.write_all(&piece[..length]).await.unwrap();
        left -= length;
    }
}

async fn drain(from: &mut (impl tokio::io::AsyncRead + Unpin), mut left: usize) {
    let mut piece = [0; 16 << 10];
    while left > 0 {
        let length = left.min(piece.len());
        let length = from.read(&mut piece[..length]).await.unwrap();
        assert_ne!(length, 0);
        assert!(piece[..length].iter().all(|octet| *octet == b'x'));
        left -= length;
    }
}

/// The most memory that this process has ever had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}
