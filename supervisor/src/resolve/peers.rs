//! Names of other containers, asked of the DNS servers of the container's own networks through sockets in its namespace.
//! What comes in there may be anybody's: an answer must come from the server asked, with the question and its number.

use super::{Family, question};
use domain::base::Message;
use domain::base::iana::Rcode;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use terok_policy::Name;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

/// One round: who has not answered by then is asked once more. The servers are a bridge away.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: u32 = 2;
/// Most servers asked; a container has one a network and family.
const SERVERS: usize = 8;
/// EDNS is not offered, so this is the longest answer and a little more.
const ANSWER: usize = 2048;

/// The servers and the questions on their way to them.
pub(crate) struct Peers {
    /// At most one a family.
    sockets: Vec<UdpSocket>,
    servers: Vec<SocketAddr>,
    asked: RefCell<HashMap<u16, Asked>>,
}

struct Asked {
    server: usize,
    family: Family,
    query: Message<Vec<u8>>,
    answers: mpsc::UnboundedSender<(usize, Family, Message<Vec<u8>>)>,
}

/// Not every server has answered, and none knew the name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no answer from the DNS server {0} of the container's network")]
pub(crate) struct NoAnswer(SocketAddr);

impl Peers {
    /// Asks `servers` on `port` through `sockets`. [`Peers::listen`] must run for anything to be heard.
    pub(crate) fn new(sockets: Vec<UdpSocket>, servers: &[IpAddr], port: u16) -> Self {
        let servers = servers.iter().take(SERVERS).map(|ip| SocketAddr::new(ip.to_canonical(), port));
        Peers { sockets, servers: servers.collect(), asked: RefCell::default() }
    }

    /// The addresses of another container, `None` where every server says that there is none of this name.
    pub(crate) async fn addresses(&self, name: &Name) -> Result<Option<Vec<IpAddr>>, NoAnswer> {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let mut places = Vec::new();
        for server in 0..self.servers.len() {
            for family in [Family::V4, Family::V6] {
                places.extend(self.place(server, family, name, sender.clone()));
            }
        }
        let mut heard: HashMap<usize, Heard> = HashMap::new();
        let mut silent = places.len();
        for _ in 0..ROUNDS {
            let deadline = Instant::now() + ROUND;
            for place in &places {
                // What cannot be sent now is sent in the next round.
                let _ = timeout_at(deadline, self.send(place.id)).await;
            }
            while silent > 0 {
                let Ok(Some((server, family, message))) = timeout_at(deadline, answers.recv()).await else {
                    break;
                };
                silent -= 1;
                let heard = heard.entry(server).or_default();
                heard.take(family, &message);
                if heard.families == 2 && !heard.addresses.is_empty() {
                    return Ok(Some(std::mem::take(&mut heard.addresses)));
                }
            }
        }
        if let Some(heard) = heard.values_mut().find(|heard| !heard.addresses.is_empty()) {
            return Ok(Some(std::mem::take(&mut heard.addresses)));
        }
        match (0..self.servers.len()).find(|server| heard.get(server).is_none_or(|h| h.families < 2)) {
            Some(server) => Err(NoAnswer(self.servers[server])),
            None => Ok(None),
        }
    }

    /// Hears answers for as long as it is polled.
    pub(crate) async fn listen(self: Rc<Self>, socket: usize) {
        let Some(socket) = self.sockets.get(socket) else { return };
        let mut buffer = [0; ANSWER];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, from)) => self.hear(&buffer[..length], from),
                // An earlier question's, or a card that went: the next datagram may be well.
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// How many sockets want [`Peers::listen`].
    pub(crate) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    fn hear(&self, datagram: &[u8], from: SocketAddr) {
        let Ok(message) = Message::from_octets(datagram.to_vec()) else { return };
        let mut asked = self.asked.borrow_mut();
        let id = message.header().id();
        let expected = asked.get(&id).is_some_and(|asked| {
            let server = self.servers[asked.server];
            (from.ip().to_canonical(), from.port()) == (server.ip(), server.port())
                && message.is_answer(&asked.query)
        });
        if expected && let Some(asked) = asked.remove(&id) {
            // Who asked may have had enough answers.
            let _ = asked.answers.send((asked.server, asked.family, message));
        }
    }

    /// Sends a question, if it has no answer yet.
    async fn send(&self, id: u16) -> io::Result<()> {
        let (server, query) = match self.asked.borrow().get(&id) {
            Some(asked) => (self.servers[asked.server], asked.query.clone()),
            None => return Ok(()),
        };
        let same =
            |socket: &&UdpSocket| socket.local_addr().is_ok_and(|own| own.is_ipv4() == server.is_ipv4());
        match self.sockets.iter().find(same) {
            Some(socket) => socket.send_to(query.as_slice(), server).await.map(drop),
            None => Ok(()),
        }
    }

    /// A question under a number that no other on its way has.
    fn place(
        &self,
        server: usize,
        family: Family,
        name: &Name,
        answers: mpsc::UnboundedSender<(usize, Family, Message<Vec<u8>>)>,
    ) -> Option<Place<'_>> {
        let mut asked = self.asked.borrow_mut();
        let query = loop {
            let query = question::query(name, family, false, false).ok()?;
            if !asked.contains_key(&query.header().id()) {
                break query;
            }
        };
        let id = query.header().id();
        asked.insert(id, Asked { server, family, query, answers });
        Some(Place { peers: self, id })
    }
}

/// What one server said.
#[derive(Default)]
struct Heard {
    /// Families it has answered for, with addresses or with none.
    families: u32,
    addresses: Vec<IpAddr>,
}

impl Heard {
    fn take(&mut self, family: Family, message: &Message<Vec<u8>>) {
        // Any other code, and what cannot be read, is no answer.
        if let (Rcode::NOERROR, Some(answer)) = (message.header().rcode(), question::read(message, family)) {
            self.families += 1;
            self.addresses.extend(answer.addresses);
        } else if matches!(message.header().rcode(), Rcode::NXDOMAIN | Rcode::REFUSED) {
            self.families += 1;
        }
    }
}

/// A question's place among those on their way, given up with the question.
struct Place<'a> {
    peers: &'a Peers,
    id: u16,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.peers.asked.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
