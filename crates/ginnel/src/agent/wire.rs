//! Messages and frames on the agent's socket: a length of 32 bits and so many bytes.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A longer message is refused before it is read.
const MESSAGE_MAX: usize = 64 * 1024;

/// Writes one message.
pub(crate) async fn send<W>(stream: &mut W, message: &impl Serialize) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(|_| too_long())?;
    if length as usize > MESSAGE_MAX {
        return Err(too_long());
    }
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&bytes).await
}

/// Reads one message; `None` when the stream ends before it begins.
pub(crate) async fn receive<T, R>(stream: &mut R) -> io::Result<Option<T>>
where
    T: DeserializeOwned,
    R: AsyncRead + Unpin,
{
    let mut bytes = Vec::new();
    match receive_frame(stream, &mut bytes, MESSAGE_MAX).await? {
        true => Ok(Some(serde_json::from_slice(&bytes)?)),
        false => Ok(None),
    }
}

/// Reads one frame into `bytes`; `false` when the stream ends before it begins.
pub(crate) async fn receive_frame<R>(
    stream: &mut R,
    bytes: &mut Vec<u8>,
    most: usize,
) -> io::Result<bool>
where
    R: AsyncRead + Unpin,
{
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| too_long())?;
    if length > most {
        return Err(too_long());
    }
    bytes.clear();
    bytes.resize(length, 0);
    stream.read_exact(bytes).await?;
    Ok(true)
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the message is longer than its bound",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::protocol::{
        Answer, Capture, Envelope, PROTOCOL, RecordKind, Request, Sought,
    };

    #[tokio::test]
    async fn a_message_comes_back_and_the_pipe_begins_right_behind_it() {
        let request = Request::Dial {
            host: "a b".into(),
            port: 80,
            timeout_ms: 1,
        };
        let envelope = Envelope {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            fingerprint: "x".into(),
            request,
        };
        let mut stream = Vec::new();
        send(&mut stream, &envelope).await.unwrap();
        stream.extend(b"pipe");
        let mut reader = stream.as_slice();
        let read: Envelope = receive(&mut reader).await.unwrap().unwrap();
        assert_eq!(format!("{read:?}"), format!("{envelope:?}"));
        assert_eq!(reader, b"pipe");
    }

    #[tokio::test]
    async fn hostile_lengths_are_refused_before_any_memory_is_taken() {
        for bytes in [&[0xff; 8][..], &[0, 1, 0, 1, b'{']] {
            let error = receive::<Envelope, _>(&mut &*bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        assert!(
            receive::<Envelope, _>(&mut &[][..])
                .await
                .unwrap()
                .is_none()
        );
        assert!(
            receive::<Envelope, _>(&mut &[0, 0, 0, 9, b'{'][..])
                .await
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(
            nth in 0..REQUESTS,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = sent(nth);
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            received::<Envelope>(&bytes)?;
            received::<Answer>(&bytes)?;
        }

        #[test]
        fn a_frame_is_never_longer_than_its_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            most in 0..32_usize,
        ) {
            let mut frame = Vec::new();
            if let Ok(true) = wait(receive_frame(&mut bytes.as_slice(), &mut frame, most)) {
                prop_assert!(frame.len() <= most);
                prop_assert_eq!(&frame, &bytes[4..4 + frame.len()]);
            }
        }
    }

    /// Reads one message; what was understood comes back when it is sent on.
    fn received<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(Some(message)) = wait(receive::<T, _>(&mut &*bytes)) {
            let mut again = Vec::new();
            wait(send(&mut again, &message)).unwrap();
            let read = wait(receive::<T, _>(&mut again.as_slice())).unwrap();
            let text = |message: &T| serde_json::to_string(message).unwrap();
            prop_assert_eq!(read.as_ref().map(text), Some(text(&message)));
        }
        Ok(())
    }

    fn sent(nth: usize) -> Vec<u8> {
        let (host, interval_ms) = ("a b".to_owned(), 1_000);
        let requests: [Request; REQUESTS] = [
            Request::Hello,
            Request::Udp,
            Request::Status,
            Request::Drain,
            Request::Events,
            Request::Peer {
                name: "gate".into(),
            },
            Request::Ending { connection: 7 },
            Request::Whois(Sought::Connection {
                client: ([127, 0, 0, 1], 40_000).into(),
                server: ([127, 0, 0, 1], 80).into(),
            }),
            Request::Resolve {
                name: "db.internal".into(),
                kinds: vec![RecordKind::Aaaa],
            },
            Request::Ping {
                host: host.clone(),
                count: Some(3),
                interval_ms,
                size: 56,
            },
            Request::Dial {
                host,
                port: 80,
                timeout_ms: 1,
            },
            Request::Capture(Capture {
                inner: true,
                outer: false,
                filter: Some("tcp".into()),
                keys: false,
                duration_ms: Some(1),
                packets_max: None,
                bytes_max: None,
            }),
        ];
        let envelope = Envelope {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            fingerprint: "x".into(),
            request: requests[nth].clone(),
        };
        let mut bytes = Vec::new();
        wait(send(&mut bytes, &envelope)).unwrap();
        bytes
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    const REQUESTS: usize = 12;
}
