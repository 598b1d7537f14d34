//! Published ports (`terok.publish`): listeners on the host, made here because the supervisor may not bind any.

use crate::refusal::Refusal;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use terok_policy::policy::Publish;

/// Sockets made in the container's namespace for connections to it: this many at a time.
pub(crate) const AT_A_TIME: u16 = 64;
/// The supervisor of a container that was started anew may still be ending.
const IN_USE_FOR: Duration = Duration::from_secs(2);

/// A listener for each port, in order.
pub(crate) fn listen(ports: &[Publish]) -> Result<Vec<TcpListener>, Refusal> {
    let deadline = Instant::now() + IN_USE_FOR;
    ports.iter().map(|port| bind(port, deadline)).collect()
}

fn bind(port: &Publish, deadline: Instant) -> Result<TcpListener, Refusal> {
    let address = SocketAddr::new(port.addr, port.port);
    loop {
        let listener =
            TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let reason = match listener {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            Err(error) => match error.kind() {
                ErrorKind::AddrInUse => "is in use; choose another port".to_owned(),
                ErrorKind::AddrNotAvailable => "is no address of this host".to_owned(),
                ErrorKind::PermissionDenied => {
                    "needs a right that this user lacks; choose a port above 1023, or lower net.ipv4.ip_unprivileged_port_start".to_owned()
                }
                _ => error.to_string(),
            },
        };
        return Err(Refusal::Guard(format!("terok.publish: {address} {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(addr: &str, port: u16) -> Publish {
        Publish { addr: addr.parse().unwrap(), port, to: 80 }
    }

    #[test]
    fn a_port_that_is_taken_and_an_address_that_is_not_ours_are_said_by_name() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = bind(&publish("127.0.0.1", port), Instant::now()).unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} is in use")), "{error}");
        let error = listen(&[publish("203.0.113.1", 8080)]).unwrap_err().to_string();
        assert!(error.contains("no address of this host"), "{error}");
    }

    #[test]
    fn a_port_that_is_just_being_given_up_is_waited_for() {
        let ending = TcpListener::bind("[::1]:0").unwrap();
        let port = ending.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                drop(ending);
            });
            bind(&publish("::1", port), Instant::now() + Duration::from_secs(60)).unwrap();
        });
    }
}
