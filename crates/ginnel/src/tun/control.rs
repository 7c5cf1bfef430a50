//! The UAPI socket and its clients: bytes in and out, without blocking the engine.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use os::{
    poll::{Interest, Poll, Ready},
    unix::SocketFile,
};
use zeroize::Zeroizing;

use super::uapi::{self, Errno, Framing, Request, Wanted};

/// The listener and its clients.
pub(crate) struct Control {
    listener: UnixListener,
    /// Removes the socket's file at the end.
    file: SocketFile,
    /// At most `CLIENTS_MAX`; further ones wait in the listener's backlog.
    clients: Vec<Client>,
    /// Where the listener and the clients stand in the poll set of this turn.
    places: Vec<usize>,
}

/// What answers requests.
pub(crate) trait Answer {
    /// Performs a request and returns the text of its answer.
    fn answer(&mut self, request: Request) -> Zeroizing<String>;

    /// Lets a capture have the connection, and answer on it.
    fn capture(&mut self, wanted: &Wanted, stream: UnixStream) -> Result<(), Errno>;
}

struct Client {
    stream: UnixStream,
    /// At most `uapi::REQUEST_MAX`.
    input: Zeroizing<Vec<u8>>,
    /// How much of `input` holds no end of a request.
    seen: usize,
    output: Zeroizing<Vec<u8>>,
    written: usize,
    open: bool,
}

impl Control {
    /// Serves `listener`, whose file is `file`.
    pub(crate) fn new(listener: UnixListener, file: SocketFile) -> Self {
        Self {
            listener,
            file,
            clients: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Tells whether clients can still find the socket.
    pub(crate) fn is_reachable(&self) -> bool {
        self.file.is_ours()
    }

    /// Adds the descriptors that matter now to `poll`.
    pub(crate) fn watch(&mut self, poll: &mut Poll) {
        self.places.clear();
        let accepts = Interest {
            readable: self.clients.len() < CLIENTS_MAX,
            writable: false,
        };
        self.places.push(poll.add(self.listener.as_fd(), accepts));
        for client in &self.clients {
            self.places
                .push(poll.add(client.descriptor(), client.interest()));
        }
    }

    /// Serves whoever is ready.
    pub(crate) fn handle_ready(&mut self, poll: &Poll, answer: &mut impl Answer) {
        let mut ready = self.places.iter().map(|place| poll.ready(*place));
        let incoming = ready.next().is_some_and(|listener| listener.readable);
        for (client, ready) in self.clients.iter_mut().zip(ready) {
            client.handle_ready(ready, answer);
        }
        self.clients.retain(|client| client.open);
        while incoming && self.clients.len() < CLIENTS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => self.clients.extend(Client::new(stream)),
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        tracing::warn!("UAPI socket: accept: {error}");
                    }
                    break;
                }
            }
        }
    }
}

impl Client {
    fn new(stream: UnixStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        Some(Self {
            stream,
            input: Zeroizing::default(),
            seen: 0,
            output: Zeroizing::default(),
            written: 0,
            open: true,
        })
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn interest(&self) -> Interest {
        // A client that does not read its answers is not asked for more.
        let answering = self.written < self.output.len();
        Interest {
            readable: !answering,
            writable: answering,
        }
    }

    fn handle_ready(&mut self, ready: Ready, answer: &mut impl Answer) {
        if ready.readable || ready.closed {
            self.read();
        }
        self.handle_requests(answer);
        self.write();
    }

    fn read(&mut self) {
        let mut chunk = Zeroizing::new([0; CHUNK]);
        match self.stream.read(&mut *chunk) {
            Ok(0) => self.open = false,
            Ok(length) => append(&mut self.input, &chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.open = false,
        }
    }

    fn handle_requests(&mut self, answer: &mut impl Answer) {
        // One at a time: a client that asks faster than it reads fills no memory.
        if self.written < self.output.len() {
            return;
        }
        match uapi::frame(&self.input, self.seen) {
            Framing::Partial => self.seen = self.input.len(),
            Framing::TooLong => self.open = false,
            Framing::Whole(length) => {
                let text = match uapi::parse(&self.input[..length]) {
                    Ok(Some(Request::Capture(wanted))) => {
                        let stream = self.stream.try_clone().map_err(Errno::from);
                        match stream.and_then(|stream| answer.capture(&wanted, stream)) {
                            Ok(()) => return self.open = false,
                            Err(errno) => refusal(errno),
                        }
                    }
                    Ok(Some(request)) => answer.answer(request),
                    Ok(None) => return self.open = false,
                    Err(errno) => refusal(errno),
                };
                let rest = self.input[length..].to_vec();
                self.input = Zeroizing::new(rest);
                self.seen = 0;
                self.output = Zeroizing::new(text.as_bytes().to_vec());
                self.written = 0;
            }
        }
    }

    fn write(&mut self) {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.open &= error.kind() == io::ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }
}

/// Writes the answer to a request that was refused.
pub(crate) fn refusal(errno: Errno) -> Zeroizing<String> {
    Zeroizing::new(uapi::emit_errno(errno))
}

/// Appends without leaving secrets in a smaller buffer that was outgrown.
fn append(buffer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let mut larger = Vec::with_capacity(needed.next_power_of_two());
        larger.extend_from_slice(buffer);
        *buffer = Zeroizing::new(larger);
    }
    buffer.extend_from_slice(bytes);
}

const CLIENTS_MAX: usize = 64;
/// What one read takes; a megabyte of configuration needs sixteen turns.
const CHUNK: usize = 65_536;
