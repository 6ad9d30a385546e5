//! From a name to a socket, where the name stands for several nodes.
//!
//! A resolver gives the addresses of a name in the same order every time, and a node that a network has cut off
//! refuses nothing: it is silent. Asked one after the other, the first would use up the whole time for connecting,
//! at every try anew, while its neighbours are well. So each gets a short head start over the next, and who answers
//! first is taken. The order is drawn: a node that accepts connections and then does nothing would else be first
//! at every try.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_rs::traits::Reactor;
use async_rs::{Runtime, Tokio};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::tcp::{AsyncTcpStream, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use rand::seq::SliceRandom as _;

/// How long one address has before the next one is asked too (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// A socket to one of the addresses of the host, with TLS where the address asks for it.
///
/// # Errors
/// The last address's, or the resolver's.
pub async fn any(uri: &AMQPUri) -> io::Result<super::Socket> {
    let host = uri.authority.host.as_str();
    let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, uri.authority.port)).await?.collect();
    addresses.shuffle(&mut rand::rng());
    let runtime = Runtime::tokio_current();
    let socket = first(addresses, |address| runtime.tcp_connect_addr(address)).await?;
    let socket: AsyncTcpStream<<Tokio as Reactor>::TcpStream> = AsyncTcpStream::Plain(socket);
    match uri.scheme {
        AMQPScheme::AMQP => Ok(socket),
        AMQPScheme::AMQPS => socket.into_tls(host, TLSConfig::default()).await,
    }
}

/// The first connection that comes about.
async fn first<S>(addresses: Vec<SocketAddr>, connect: impl AsyncFn(SocketAddr) -> io::Result<S>) -> io::Result<S> {
    let mut left = addresses.into_iter();
    let mut tries = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    loop {
        match left.next() {
            Some(address) => tries.push(connect(address)),
            None if tries.is_empty() => return Err(failed),
            None => {}
        }
        tokio::select! {
            Some(tried) = tries.next() => match tried {
                Ok(socket) => return Ok(socket),
                Err(error) => failed = error,
            },
            () = tokio::time::sleep(HEAD_START), if left.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: u16 = 1;
    const REFUSES: u16 = 2;
    const ANSWERS: u16 = 3;

    async fn reach(ports: &[u16]) -> io::Result<u16> {
        let addresses = ports.iter().map(|port| SocketAddr::from(([192, 0, 2, 1], *port))).collect();
        let connect = async |address: SocketAddr| match address.port() {
            SILENT => std::future::pending().await,
            REFUSES => Err(io::ErrorKind::ConnectionRefused.into()),
            port => Ok(port),
        };
        tokio::time::timeout(Duration::from_secs(1), first(addresses, connect)).await?
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_are_silent_or_refuse_do_not_stand_before_one_that_answers() {
        assert_eq!(reach(&[SILENT, SILENT, ANSWERS]).await.unwrap(), ANSWERS);
        assert_eq!(reach(&[REFUSES, SILENT, ANSWERS]).await.unwrap(), ANSWERS);
        assert_eq!(reach(&[SILENT]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(reach(&[REFUSES, REFUSES]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(reach(&[]).await.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }
}
