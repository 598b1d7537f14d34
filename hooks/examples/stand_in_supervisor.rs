//! Stands in for the supervisor in the tests of the hook: reads the hand-over, does what the file `behaviour` beside it
//! says (`ready`, `exit`, `hang`), and ends with the container.

use std::fs::File;
use std::io::Write;
use std::time::Duration;
use terok_kernel::{memfd, pidfd::PidFd};
use terok_policy::control::Container;
use terok_policy::layout;
use terok_policy::plan::{Fd, SupervisorConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = memfd::read_sealed(File::open("/proc/self/fd/3")?.into(), 1 << 20)?;
    let config: SupervisorConfig = serde_json::from_slice(&config)?;
    let record = std::fs::read(format!("{}/{}", config.run_dir, layout::CONTAINER))?;
    let record: Container = serde_json::from_slice(&record)?;
    let container = PidFd::open(record.pid)?;
    let own = std::env::current_exe()?;
    let behaviour = std::fs::read_to_string(own.with_file_name("behaviour"))?;
    eprintln!("stand-in: {behaviour}");
    match behaviour.as_str() {
        "ready" => {
            let at = config.fds.iter().position(|fd| *fd == Fd::Ready).ok_or("no readiness pipe")?;
            File::options().write(true).open(format!("/proc/self/fd/{}", at + 4))?.write_all(b"1")?;
        }
        "exit" => std::process::exit(3),
        _ => {}
    }
    container.wait(Duration::from_secs(60));
    Ok(())
}
