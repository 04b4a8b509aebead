//! One of the people: a WebSocket, a conversation, and what was seen of its answers.

use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};

use crate::{Failures, Outcome, paced_provider::lateness};

/// What a turn may take beyond the length of its answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// What all of them have in common.
pub struct Client {
    /// Where the bridge is.
    pub url: String,
    /// How many an answer has to have, if that is known.
    pub deltas: Option<usize>,
    /// How long an answer takes at least.
    pub length: Duration,
}

/// What they saw; times are in milliseconds.
#[derive(Default)]
pub struct Seen {
    /// Turns that were answered as they should be.
    pub turns: usize,
    pub frames: usize,
    pub first_frames: Vec<f64>,
    pub first_deltas: Vec<f64>,
    pub lateness: Vec<f64>,
    pub failures: Failures,
}

impl Seen {
    pub fn add(&mut self, mut other: Self) {
        self.turns += other.turns;
        self.frames += other.frames;
        self.first_frames.append(&mut other.first_frames);
        self.first_deltas.append(&mut other.first_deltas);
        self.lateness.append(&mut other.lateness);
        for (reason, count) in other.failures {
            *self.failures.entry(reason).or_default() += count;
        }
    }
}

impl Client {
    /// Asks one question after the other. After a failure a new connection goes on with the same conversation.
    pub async fn converse(&self, number: usize, turns: usize) -> Seen {
        let (mut seen, mut socket, mut session) = (Seen::default(), None, String::new());
        for turn in 1..=turns {
            let patience = self.length + PATIENCE;
            let answered = timeout(patience, self.turn(&mut socket, &mut session, number, turn, &mut seen)).await;
            let failure = match answered {
                Ok(Ok(())) => {
                    seen.turns += 1;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no end within {patience:?}"),
            };
            *seen.failures.entry(failure).or_default() += 1;
            socket = None;
        }
        if let Some(mut socket) = socket {
            // Whether the other side takes leave as well does not matter any more.
            let _ = socket.close(None).await;
        }
        seen
    }

    async fn turn(
        &self,
        socket: &mut Option<Socket>,
        session: &mut String,
        number: usize,
        turn: usize,
        seen: &mut Seen,
    ) -> Outcome<()> {
        let trace_id = format!("{:032x}", number + 1);
        let socket = match socket {
            Some(socket) => socket,
            None => socket.insert(self.connect(number, &trace_id).await?),
        };
        let asked = Instant::now();
        let question = json!({
            "message": format!("Question {turn} of person {number}"),
            "session_id": session,
            "request_id": format!("{number}-{turn}-{}", fastrand::u64(..)),
        });
        socket.send(Message::text(question.to_string())).await?;
        let (mut frames, mut deltas, mut answer) = (0, 0, String::new());
        loop {
            let frame = next_frame(socket).await?;
            let elapsed = asked.elapsed().as_secs_f64() * 1e3;
            frames += 1;
            if frames == 1 {
                seen.first_frames.push(elapsed);
                text(&frame, "session_id").clone_into(session);
            }
            if let Some(delta) = frame["delta"].as_str() {
                deltas += 1;
                if deltas == 1 {
                    seen.first_deltas.push(elapsed);
                }
                seen.lateness.extend(lateness(delta));
                answer.push_str(delta);
            }
            if frame["finish_reason"].is_null() {
                continue;
            }
            seen.frames += frames;
            let error = &frame["error"];
            return if error.is_object() {
                Err(format!("{}: {}", text(error, "code"), text(error, "message")).into())
            } else if text(&frame, "full_text") != answer {
                Err("the deltas are not the whole answer".into())
            } else if self.deltas.is_some_and(|expected| expected != deltas) {
                Err(format!("an answer of {deltas} deltas").into())
            } else if self.deltas.is_some() && text(&frame, "trace_id") != trace_id {
                Err("the trace was lost on the way".into())
            } else {
                Ok(())
            };
        }
    }

    async fn connect(&self, number: usize, trace_id: &str) -> Outcome<Socket> {
        let mut request = format!("{}?user=person-{number}", self.url).into_client_request()?;
        request.headers_mut().insert("traceparent", format!("00-{trace_id}-{:016x}-01", number + 1).parse()?);
        Ok(connect_async(request).await?.0)
    }
}

/// The next message that is one of JSON.
async fn next_frame(socket: &mut Socket) -> Outcome<Value> {
    loop {
        match socket.next().await.ok_or("the socket was closed in the middle of an answer")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => return Err("the socket was closed in the middle of an answer".into()),
            _ => {}
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
