use super::super::tests::{error, local_set, server, server_at, silent};
use super::*;
use crate::rig::{PASSES, takes_less_than};
use domain::base::{MessageBuilder, Name as DomainName, Rtype, Ttl};
use domain::rdata::A;

fn db(query: &Message<Vec<u8>>, last: u8) -> Vec<u8> {
    let owner: DomainName<Vec<u8>> = query.sole_question().unwrap().qname().to_string().parse().unwrap();
    let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
    if query.qtype() == Some(Rtype::A) {
        answer.push((&owner, Ttl::from_secs(60), A::from_octets(10, 88, 0, last))).unwrap();
    }
    answer.finish()
}

async fn peers(servers: &[SocketAddr]) -> (Rc<Peers>, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let own = socket.local_addr().unwrap();
    let ips: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
    let peers = Rc::new(Peers::new(vec![socket], &ips, servers[0].port()));
    tokio::task::spawn_local(peers.clone().listen(0));
    (peers, own)
}

fn name() -> Name {
    "db".parse().unwrap()
}

fn found(last: u8) -> Result<Option<Vec<IpAddr>>, NoAnswer> {
    Ok(Some(vec![IpAddr::from([10, 88, 0, last])]))
}

#[tokio::test(flavor = "current_thread")]
async fn the_server_that_knows_the_name_is_heard_at_once_whatever_the_others_do() {
    local_set! {
        let first = server(|q| vec![error(q, Rcode::NXDOMAIN)], silent).await;
        let at = |last: u8| format!("127.0.0.{last}:{}", first.address.port());
        let second = server_at(&at(2), silent, silent).await;
        let third = server_at(&at(3), |q| vec![db(q, 3)], silent).await;
        let (peers, _) = peers(&[first.address, second.address, third.address]).await;
        takes_less_than(ROUND / 2, async || assert_eq!(peers.addresses(&name()).await, found(3))).await;
        assert!(peers.asked.borrow().is_empty());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_question_is_not_to_be_passed_on() {
    local_set! {
        let server = server(|q| if q.header().rd() { vec![] } else { vec![db(q, 1)] }, silent).await;
        let (peers, _) = peers(&[server.address]).await;
        assert_eq!(peers.addresses(&name()).await, found(1));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_nobody_knows_is_unknown_and_a_silent_server_is_an_error() {
    local_set! {
        let first = server(|q| vec![error(q, Rcode::NXDOMAIN)], silent).await;
        let second = format!("127.0.0.2:{}", first.address.port());
        let second = server_at(&second, silent, silent).await;
        let (knowing, _) = peers(&[first.address]).await;
        assert_eq!(knowing.addresses(&name()).await, Ok(None));
        let (both, _) = peers(&[first.address, second.address]).await;
        assert_eq!(both.addresses(&name()).await, Err(NoAnswer(second.address)));
        // Two families, twice: the last of them may be on its way still.
        let start = Instant::now();
        while second.udp.get() < 4 {
            assert!(start.elapsed() < PASSES, "{}", second.udp.get());
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn answers_with_another_number_question_or_sender_are_ignored() {
    local_set! {
        let server = server(|query| {
            let mut wrong_id = db(query, 66);
            wrong_id[0] ^= 0x55;
            let mut no_answer = db(query, 66);
            no_answer[2] &= 0x7f;
            let other: DomainName<Vec<u8>> = "other".parse().unwrap();
            let mut question = MessageBuilder::new_vec().question();
            question.push((other, Rtype::A)).unwrap();
            let mut wrong_name = db(&question.into_message(), 66);
            wrong_name[..2].copy_from_slice(&query.as_slice()[..2]);
            vec![wrong_id, no_answer, wrong_name, b"garbage".to_vec(), Vec::new(), db(query, 1)]
        }, silent).await;
        let (peers, _) = peers(&[server.address]).await;
        assert_eq!(peers.addresses(&name()).await, found(1));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_from_elsewhere_is_ignored_even_with_the_right_number() {
    local_set! {
        let (seen, mut queries) = mpsc::unbounded_channel();
        let real = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (peers, own) = peers(&[real.local_addr().unwrap()]).await;
        // Knows the question, and answers from another port and from another address.
        let forger = async {
            let mut buffer = [0; 512];
            let (mut heard, mut from) = (0, own);
            while heard < 2 {
                let (length, sender) = real.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_octets(buffer[..length].to_vec()).unwrap();
                from = sender;
                let other_address = UdpSocket::bind(("127.0.0.2", real.local_addr().unwrap().port())).await.unwrap();
                let other_port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                for socket in [other_address, other_port] {
                    socket.send_to(&db(&query, 66), sender).await.unwrap();
                }
                seen.send(query).unwrap();
                heard += 1;
            }
            sleep(Duration::from_millis(50)).await;
            while let Ok(query) = queries.try_recv() {
                real.send_to(&db(&query, 1), from).await.unwrap();
            }
        };
        let asked = name();
        let (answer, ()) = tokio::join!(peers.addresses(&asked), forger);
        assert_eq!(answer, found(1));
    }
}
