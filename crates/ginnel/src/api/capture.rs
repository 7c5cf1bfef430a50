//! Captures elsewhere: the reply that goes on while one runs, and what its node sends.

use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, StatusCode,
    body::{Bytes, Incoming},
    header::{HeaderValue, TE},
};
use hyper_util::rt::TokioIo;
use model::{
    api::{CAPTURE_END_TRAILER, CAPTURE_ID_HEADER, CaptureEnd, ErrorCode, NewCapture, SentBlocks},
    id::{CaptureId, NodeId},
};
use tokio::{task::JoinHandle, time::timeout};

use super::{Client, Error, REPLY_BYTES_MAX, REPLY_TIMEOUT};

/// The file of a capture elsewhere, as it comes; dropping it ends the capture.
pub(crate) struct CaptureFile {
    id: CaptureId,
    body: Incoming,
    /// Moves the bytes.
    connection: JoinHandle<()>,
    address: String,
    /// Why the capture ended.
    end: Option<String>,
}

impl Client {
    /// Captures what passes a node, with or without the keys that open its datagrams.
    pub(crate) async fn capture(
        &self,
        node: NodeId,
        keys: bool,
        wanted: &NewCapture,
    ) -> Result<CaptureFile, Error> {
        let path = match keys {
            true => format!("/v1/nodes/{node}/capture/keys"),
            false => format!("/v1/nodes/{node}/capture"),
        };
        let body = serde_json::to_vec(wanted).expect("requests are plain data");
        let mut request = self.request(Method::POST, &path, Some(body.into()))?;
        let headers = request.headers_mut();
        // Why a capture ended is told behind it (RFC 9110, 6.5.1).
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let stream = self.connect().await?;
        let address = self.address();
        let broken = |source: hyper::Error| Error::Broken {
            address: address.clone(),
            source: source.into(),
        };
        let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = shaken.await.map_err(broken)?;
        let connection = tokio::spawn(async move {
            // Its error comes out of the body.
            drop(connection.await);
        });
        let answer = timeout(REPLY_TIMEOUT, sender.send_request(request)).await;
        let slow = |_| Error::Slow {
            address: address.clone(),
        };
        let response = answer.map_err(slow)?.map_err(broken)?;
        let status = response.status();
        let id = capture_id(response.headers());
        if status != StatusCode::OK {
            let body = http_body_util::Limited::new(response.into_body(), REPLY_BYTES_MAX);
            let body = timeout(REPLY_TIMEOUT, body.collect()).await.map_err(slow)?;
            let body = body.map_err(|source| Error::Broken {
                address: address.clone(),
                source,
            })?;
            return Err(self.refusal(status, &body.to_bytes()));
        }
        Ok(CaptureFile {
            id: id.ok_or_else(|| self.foreign(status))?,
            body: response.into_body(),
            connection,
            address,
            end: None,
        })
    }

    /// Sends blocks of a capture of this node, with its node token; `None` when it does not run any
    /// more.
    pub(crate) async fn send_capture(
        &self,
        id: CaptureId,
        blocks: Bytes,
    ) -> Result<Option<SentBlocks>, Error> {
        let path = format!("/v1/captures/{id}/blocks");
        let exchange = self.exchange(Method::POST, &path, Some(blocks), REPLY_TIMEOUT);
        let (status, body) = exchange.await?;
        match self.parse(status, &body) {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(None),
            parsed => parsed.map(Some),
        }
    }

    /// Ends a capture; that it has ended already is well.
    pub(crate) async fn end_capture(&self, id: CaptureId, end: &CaptureEnd) -> Result<(), Error> {
        let path = format!("/v1/captures/{id}/end");
        match self.tell(Method::POST, &path, end).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
            told => told,
        }
    }
}

impl CaptureFile {
    /// Returns the id of the capture.
    pub(crate) fn id(&self) -> CaptureId {
        self.id
    }

    /// Waits for the next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| Error::Broken {
                address: self.address.clone(),
                source: source.into(),
            })?;
            match frame.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let end = trailers.get(CAPTURE_END_TRAILER);
                    self.end = end.and_then(|end| Some(end.to_str().ok()?.to_owned()));
                }
            }
        }
        Ok(None)
    }

    /// Returns why the capture ended, once it has.
    pub(crate) fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn capture_id(headers: &HeaderMap) -> Option<CaptureId> {
    let text = headers.get(CAPTURE_ID_HEADER)?.to_str().ok()?;
    text.parse().ok().map(CaptureId)
}
