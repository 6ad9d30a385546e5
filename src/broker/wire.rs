//! What the broker sends, made legible before lapin parses it.
//!
//! AMQP's short strings are bytes, and RabbitMQ passes on whatever a producer put there. lapin ends the whole
//! connection at one that is not UTF-8, and recurses into nested tables without a limit: one message, published by
//! anybody who may publish, would take the worker's connection (or its stack) down at each delivery, with
//! everything that was under way on it. So the stream under lapin is ours: [`frames`] repairs, in place and
//! without changing a length, what lapin cannot read.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use bytes::{Buf as _, BytesMut};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

mod frames;
mod reach;

/// Bytes asked of the socket at a time.
const READ_SIZE: usize = 64 * 1024;

/// Opens a connection whose messages are legible.
///
/// # Errors
/// lapin's.
pub async fn connect(uri: AMQPUri, properties: ConnectionProperties) -> lapin::Result<Connection> {
    let runtime = Runtime::new(Kit(Tokio::current()));
    let open = async |uri: AMQPUri, _: Runtime<Kit>| Ok(AsyncTcpStream::Plain(Legible::new(reach::any(&uri).await?)));
    Connection::connector(uri, runtime, open, properties).await
}

type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A stream of AMQP frames in which lapin can read everything.
///
/// Bound: it holds one frame with a method or a header at most, and these are at most
/// [`frames::LARGEST`] bytes; contents pass through.
struct Legible {
    socket: Socket,
    /// What the last read brought.
    arrived: Box<[u8]>,
    held: BytesMut,
    /// Of what is held, the bytes that may be read.
    ready: usize,
    cleaner: frames::Cleaner,
    ended: bool,
}

impl Legible {
    fn new(socket: Socket) -> Self {
        let arrived = vec![0; READ_SIZE].into_boxed_slice();
        Self { socket, arrived, held: BytesMut::new(), ready: 0, cleaner: frames::Cleaner::default(), ended: false }
    }
}

impl AsyncRead for Legible {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.ready == 0 && !this.ended {
            let count = ready!(Pin::new(&mut this.socket).poll_read(context, &mut this.arrived))?;
            this.held.extend_from_slice(&this.arrived[..count]);
            this.ended = count == 0;
            // A frame that will never be whole is lapin's to complain about.
            this.ready = if this.ended { this.held.len() } else { this.cleaner.clean(&mut this.held) };
        }
        let count = this.ready.min(into.len());
        into[..count].copy_from_slice(&this.held[..count]);
        this.held.advance(count);
        this.ready -= count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Legible {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// tokio as lapin wants it, but for the type of its sockets.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, work: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for Kit {
    type TcpStream = Legible;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// Of no use to lapin; and its bound has no public name.
    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Legible, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Legible::new(AsyncTcpStream::Plain(connecting.await?))) }
    }
}
