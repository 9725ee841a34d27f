//! An HTTP client that sends each request on a connection of its own and measures the times of the answer.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use http_body_util::{BodyDataStream, BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpSocket, lookup_host};
use tokio::task::JoinSet;

use crate::call::{Call, Outcome, Reading, Record, Usage};

/// The bytes that a slow reader buffers: the least that the kernel and the library allow.
const SLOW_BUFFER: u32 = 4096;
const SLOW_LIBRARY_BUFFER: usize = 8192;

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    authority: String,
    timeout: Duration,
    key: Option<String>,
}

/// The head of an answer, and the connection that carries its body. Dropping it closes the connection.
struct Answer {
    response: Response<Incoming>,
    connection: JoinSet<()>,
}

impl Client {
    /// Creates a client of the server at `url`.
    ///
    /// # Errors
    /// If `url` is not `http://HOST[:PORT]`.
    pub fn new(url: &str, timeout: Duration) -> anyhow::Result<Self> {
        let authority = url
            .strip_prefix("http://")
            .with_context(|| format!("`{url}` is not http://HOST:PORT"))?
            .trim_end_matches('/');
        let authority = match authority.contains(':') {
            true => authority.to_owned(),
            false => format!("{authority}:80"),
        };
        Ok(Self {
            authority,
            timeout,
            key: None,
        })
    }

    /// Returns the client with an API key, which all its calls carry.
    pub fn with_key(self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self
        }
    }

    /// Sends the call. The record holds every failure.
    pub async fn send(&self, call: &Call) -> Record {
        let begun = Instant::now();
        let mut record = Record {
            kind: call.kind,
            outcome: Outcome::Timeout,
            ttft: None,
            gaps: Vec::new(),
            e2e: 0.0,
            usage: Usage::default(),
        };
        let exchange = self.exchange(call, begun, &mut record);
        let (patience, given_up) = match call.reading {
            Reading::HangUp(after) => (after, Outcome::Left),
            _ => (self.timeout, Outcome::Timeout),
        };
        record.outcome = match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Connection(error.root_cause().to_string()),
            Err(_) => given_up,
        };
        record.e2e = begun.elapsed().as_secs_f64();
        record
    }

    /// Returns the body of the answer to a GET.
    ///
    /// # Errors
    /// If the connection fails, or the status is not 200.
    pub async fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.open(Method::GET, path, Bytes::new(), false);
        let answer = tokio::time::timeout(self.timeout, answer).await??;
        let status = answer.response.status();
        anyhow::ensure!(status == StatusCode::OK, "GET {path}: {status}");
        Ok(String::from_utf8(answer.body().await?.to_vec())?)
    }

    /// Returns the status of the answer to a GET.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn status(&self, path: &str) -> anyhow::Result<u16> {
        let answer = self.open(Method::GET, path, Bytes::new(), false);
        let answer = tokio::time::timeout(self.timeout, answer).await??;
        Ok(answer.response.status().as_u16())
    }

    /// Returns the JSON document that answers a POST.
    ///
    /// # Errors
    /// If the connection fails, or the status is not 200.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.open(Method::POST, path, body.to_string().into(), false);
        let answer = tokio::time::timeout(self.timeout, answer).await??;
        let status = answer.response.status();
        let body = tokio::time::timeout(self.timeout, answer.body()).await??;
        let text = String::from_utf8_lossy(&body);
        anyhow::ensure!(status == StatusCode::OK, "POST {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Returns the events that answer a POST, each with the time of its arrival, without the last one, `[DONE]`.
    ///
    /// # Errors
    /// If the connection fails, the status is not 200, an event is not JSON or has an error, or the stream breaks off.
    pub async fn events(&self, path: &str, body: &Value) -> anyhow::Result<Vec<(Instant, Value)>> {
        let exchange = async {
            let answer = self.open(Method::POST, path, body.to_string().into(), false);
            let Answer {
                response,
                connection: _connection,
            } = answer.await?;
            let status = response.status();
            anyhow::ensure!(status == StatusCode::OK, "POST {path}: {status}");
            let mut stream = BodyDataStream::new(response.into_body()).eventsource();
            let mut events = Vec::new();
            while let Some(event) = stream.next().await {
                let event = event?;
                if event.data == "[DONE]" {
                    return Ok(events);
                }
                let piece: Value = serde_json::from_str(&event.data)?;
                anyhow::ensure!(piece["error"].is_null(), "POST {path}: {piece}");
                events.push((Instant::now(), piece));
            }
            anyhow::bail!("POST {path}: no last event")
        };
        tokio::time::timeout(self.timeout, exchange).await?
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        slow: bool,
    ) -> anyhow::Result<Answer> {
        let address = lookup_host(&self.authority).await?.next();
        let address = address.with_context(|| format!("{} has no address", self.authority))?;
        let socket = match address.is_ipv4() {
            true => TcpSocket::new_v4()?,
            false => TcpSocket::new_v6()?,
        };
        let mut http = http1::Builder::new();
        if slow {
            socket.set_recv_buffer_size(SLOW_BUFFER)?;
            http.max_buf_size(SLOW_LIBRARY_BUFFER);
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, driver) = http.handshake(TokioIo::new(stream)).await?;
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            // The reader of the body gets the errors of the connection.
            let _ = driver.await;
        });
        let mut request = Request::builder();
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        let request = request
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        Ok(Answer {
            response,
            connection,
        })
    }

    async fn exchange(
        &self,
        call: &Call,
        begun: Instant,
        record: &mut Record,
    ) -> anyhow::Result<Outcome> {
        let slow = matches!(call.reading, Reading::Slow(_));
        let body = call.body.to_string().into();
        let answer = self.open(Method::POST, call.path, body, slow).await?;
        match answer.response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                let headers = answer.response.headers();
                let retry_after = headers.contains_key(header::RETRY_AFTER);
                return Ok(Outcome::Rejected { retry_after });
            }
            status => return Ok(Outcome::Status(status.as_u16())),
        }
        if matches!(call.reading, Reading::Whole | Reading::HangUp(_)) {
            let answer: Value = serde_json::from_slice(&answer.body().await?)?;
            record.ttft = Some(begun.elapsed().as_secs_f64());
            record.usage = Usage::read(&answer["usage"]).unwrap_or_default();
            return Ok(Outcome::Done);
        }
        let Answer {
            response,
            connection: _connection,
        } = answer;
        let events = BodyDataStream::new(response.into_body());
        Ok(read_events(events, call.reading, begun, record).await)
    }
}

impl Answer {
    async fn body(self) -> anyhow::Result<Bytes> {
        let Self {
            response,
            connection: _connection,
        } = self;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}

/// Reads events to the last one, or to the point at which the client leaves.
async fn read_events<E: std::fmt::Display>(
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    reading: Reading,
    begun: Instant,
    record: &mut Record,
) -> Outcome {
    let mut events = body.eventsource();
    let mut last: Option<Instant> = None;
    let mut tokens = 0;
    loop {
        let event = match events.next().await {
            Some(Ok(event)) => event,
            Some(Err(error)) => return Outcome::BrokenStream(error.to_string()),
            None => return Outcome::BrokenStream("no last event".into()),
        };
        let now = Instant::now();
        if event.data == "[DONE]" {
            return Outcome::Done;
        }
        let Ok(piece) = serde_json::from_str::<Value>(&event.data) else {
            return Outcome::BrokenStream("an event is no JSON".into());
        };
        if !piece["error"].is_null() {
            let code = piece["error"]["code"].to_string();
            return Outcome::BrokenStream(code.trim_matches('"').to_owned());
        }
        if carries_token(&piece) {
            tokens += 1;
            record.usage.completion = tokens;
            match last.replace(now) {
                None => record.ttft = Some((now - begun).as_secs_f64()),
                Some(last) => record.gaps.push((now - last).as_secs_f64()),
            }
        }
        if let Some(usage) = Usage::read(&piece["usage"]) {
            record.usage = usage;
        }
        match reading {
            Reading::Slow(pause) => tokio::time::sleep(pause).await,
            Reading::Leave { after } if tokens >= after => return Outcome::Left,
            _ => {}
        }
    }
}

/// Returns whether an event has a token: in `choices` of a completion, or in `outputs` of the server's own routes.
fn carries_token(piece: &Value) -> bool {
    let parts = piece["choices"].as_array().or(piece["outputs"].as_array());
    parts.is_some_and(|parts| !parts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    fn record() -> Record {
        Record {
            kind: "test",
            outcome: Outcome::Timeout,
            ttft: None,
            gaps: Vec::new(),
            e2e: 0.0,
            usage: Usage::default(),
        }
    }

    /// Reads `text` in pieces of `size` bytes.
    async fn read(text: &str, size: usize, reading: Reading) -> (Outcome, Record) {
        let pieces: Vec<Result<Bytes, String>> = text
            .as_bytes()
            .chunks(size)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        let mut record = record();
        let body = stream::iter(pieces);
        let outcome = read_events(body, reading, Instant::now(), &mut record).await;
        (outcome, record)
    }

    const ANSWER: &str = "data: {\"choices\": [{\"text\": \"é\"}]}\n\n: a comment\n\ndata: {\"choices\": [{\"text\": \"\"}]}\r\n\r\n\
                          data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 5, \"completion_tokens\": 2}}\n\ndata: [DONE]\n\n";

    #[tokio::test]
    async fn events_are_found_however_they_are_cut() {
        for size in [1, 2, 7, 1000] {
            let (outcome, record) = read(ANSWER, size, Reading::Stream).await;
            assert_eq!(outcome, Outcome::Done);
            assert_eq!(record.gaps.len(), 1);
            assert!(record.ttft.is_some());
            assert_eq!((record.usage.prompt, record.usage.completion), (5, 2));
        }
    }

    #[tokio::test]
    async fn a_stream_without_its_end_is_broken() {
        let cut = &ANSWER[..ANSWER.len() - 16];
        let (outcome, _) = read(cut, 5, Reading::Stream).await;
        assert!(matches!(outcome, Outcome::BrokenStream(_)));
        let failed = "data: {\"error\": {\"code\": \"internal\"}}\n\n";
        let (outcome, _) = read(failed, 5, Reading::Stream).await;
        assert_eq!(outcome, Outcome::BrokenStream("internal".into()));
    }

    #[tokio::test]
    async fn one_who_leaves_leaves() {
        let (outcome, record) = read(ANSWER, 9, Reading::Leave { after: 1 }).await;
        assert_eq!((outcome, record.usage.completion), (Outcome::Left, 1));
    }

    #[test]
    fn addresses_have_a_port() {
        let authority = |url| Client::new(url, Duration::ZERO).map(|c| c.authority).ok();
        assert_eq!(authority("http://a:1/").as_deref(), Some("a:1"));
        assert_eq!(authority("http://a").as_deref(), Some("a:80"));
        assert_eq!(authority("https://a"), None);
    }
}
