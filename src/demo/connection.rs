//! One connection: one request after the other, each met by the mood of its moment.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::answer::{Answer, Body, Protocol};
use super::azure::{self, Call, Route};
use super::config::mood_from_text;
use super::delivery::{Sent, Stop, reason};
use super::faults::delivery;
use super::http1::{Framing, Head, Socket, Wire, WireError};
use super::limits::Regime;
use super::live::{Live, hold};
use super::realtime::converse;
use super::refusal::Refusal;
use super::script::Mood;
use super::websocket::accept_key;

/// What becomes of a connection after a request.
enum Next {
    Request,
    Close,
    Reset,
}

/// Serves a connection until either side ends it.
pub(super) async fn serve<S: Socket>(live: &Live, socket: S, number: u64) {
    let mut wire = Wire::new(socket);
    loop {
        let head = match wire.head(live.resource.idle_limit).await {
            Ok(Some(head)) => head,
            Ok(None) => return wire.close().await,
            Err(problem) => {
                complain(&mut wire, &problem).await;
                return wire.close().await;
            }
        };
        let entry = live.journal.open(&head, number, Instant::now());
        let mut exchange = Exchange { live, wire: &mut wire, head: &head, entry };
        match exchange.run().await {
            Ok(Next::Request) => {}
            Ok(Next::Close) => return wire.close().await,
            Ok(Next::Reset) => return wire.reset().await,
            Err(WireError::Gone) => {
                live.journal.amend(entry, |seen| seen.cancelled = true);
                return;
            }
            Err(problem) => {
                complain(&mut wire, &problem).await;
                return wire.close().await;
            }
        }
    }
}

/// Tells the caller that this was not HTTP as it should be.
async fn complain<S: Socket>(wire: &mut Wire<S>, problem: &WireError) {
    let WireError::Malformed(status, why) = problem else { return };
    log::debug!("simulate: {status}: {why}");
    let text = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{why}",
        reason(*status),
        why.len()
    );
    if wire.write(text.as_bytes()).await.is_err() {
        log::trace!("simulate: the caller did not wait for a {status}");
    }
}

struct Exchange<'a, S> {
    live: &'a Live,
    wire: &'a mut Wire<S>,
    head: &'a Head,
    entry: usize,
}

impl<S: Socket> Exchange<'_, S> {
    async fn run(&mut self) -> Result<Next, WireError> {
        let framing = self.head.framing()?;
        let route = Route::of(self.head);
        let early = self.mood_by_head(route.as_ref());
        if let Some(Mood::EarlyAnswer { refusal, close }) = early {
            return self.answer_early(framing, refusal, close).await;
        }
        let body = self.read_body(framing).await?;
        let mut mood = early.unwrap_or_else(|| {
            let deployment = route.as_ref().and_then(|route| route.deployment_in(self.head, &body));
            hold(&self.live.script).step(deployment.as_deref())
        });
        while let Mood::After(delay, then) = mood {
            self.wire.pause(delay).await?;
            mood = *then;
        }
        match mood {
            Mood::Mute => {
                self.wire.gone().await;
                Err(WireError::Gone)
            }
            Mood::ResetBeforeHead => Ok(Next::Reset),
            Mood::CloseBeforeHead => Ok(Next::Close),
            Mood::Unsolicited101 => {
                self.sent_head(101);
                self.wire.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: nonsense\r\n\r\n").await?;
                self.wire.gone().await;
                Ok(Next::Close)
            }
            mood => self.answer(&body, &mood, route.as_ref()).await,
        }
    }

    /// The mood, if the head is enough to know it.
    fn mood_by_head(&self, route: Option<&Route>) -> Option<Mood> {
        if self.live.resource.moods_by_header
            && let Some(text) = self.head.value("x-simulate")
        {
            match mood_from_text(text) {
                Ok(mood) => return Some(mood),
                Err(why) => log::warn!("simulate: x-simulate: {why}"),
            }
        }
        let deployment = route.and_then(|route| route.deployment.as_deref());
        let mut script = hold(&self.live.script);
        (deployment.is_some() || !script.needs_deployment()).then(|| script.step(deployment))
    }

    async fn read_body(&mut self, framing: Framing) -> Result<Bytes, WireError> {
        let mut body = BytesMut::new();
        let waits = self.head.lists("expect", "100-continue") && framing != Framing::Length(0);
        if waits && self.head.minor == 1 && !self.wire.has_bytes_ahead() {
            self.wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let result = self.wire.body(framing, &mut body).await;
        let body = body.freeze();
        let kept = self.live.resource.keep_bodies.then(|| body.clone());
        self.live.journal.amend(self.entry, |seen| {
            seen.body_len = body.len() as u64;
            seen.body = kept;
            seen.complete = result.is_ok();
        });
        result.map(|()| body)
    }

    async fn answer_early(
        &mut self,
        framing: Framing,
        refusal: Refusal,
        close: bool,
    ) -> Result<Next, WireError> {
        let answer = azure::dressed(self.live, self.head, refusal.answer());
        let mood = Mood::EarlyAnswer { refusal, close };
        let next = self.deliver(&answer, &mood, !close).await?;
        if close {
            return Ok(Next::Close);
        }
        // The answer is out; what comes now belongs to the request all the same.
        let mut rest = BytesMut::new();
        self.wire.body(framing, &mut rest).await?;
        self.live
            .journal
            .amend(self.entry, |seen| (seen.body_len, seen.complete) = (rest.len() as u64, true));
        Ok(next)
    }

    async fn answer(&mut self, body: &Bytes, mood: &Mood, route: Option<&Route>) -> Result<Next, WireError> {
        let answer = azure::answer(self.live, self.head, body, mood, Instant::now());
        if let (Body::Socket(protocol), Some(route)) = (&answer.body, route) {
            return self.upgrade(body, protocol, route).await;
        }
        let next = self.deliver(&answer, mood, self.head.keeps_alive()).await;
        // What was generated is paid for, also when nobody waited for it.
        if let Some(charge) = &answer.charge {
            self.live.settle(charge);
        }
        next
    }

    async fn deliver(&mut self, answer: &Answer, mood: &Mood, keep: bool) -> Result<Next, WireError> {
        let plan = delivery(mood, self.live.resource.pace);
        self.wire.pause(plan.first).await?;
        plan.head(self.wire, self.head, answer, keep).await?;
        self.sent_head(answer.status);
        let sent = plan.body(self.wire, self.head, &answer.body).await?;
        let is_whole = !matches!(sent, Sent::Cut(_));
        self.live.journal.amend(self.entry, |seen| seen.answered = is_whole);
        Ok(match sent {
            Sent::Whole if keep => Next::Request,
            Sent::Whole | Sent::WholeAndClose | Sent::Cut(Stop::Close) => Next::Close,
            Sent::Cut(Stop::Reset) => Next::Reset,
        })
    }

    async fn upgrade(&mut self, body: &Bytes, protocol: &Protocol, route: &Route) -> Result<Next, WireError> {
        let accept =
            accept_key(self.head).ok_or(WireError::Malformed(400, "not a proper WebSocket handshake"))?;
        let request_id = self.live.ids.uuid();
        let text = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {accept}\r\napim-request-id: {request_id}\r\nx-ms-region: {}\r\n\r\n",
            self.live.resource.region
        );
        self.wire.write(text.as_bytes()).await?;
        self.sent_head(101);
        let (regime, now) = (Regime::AsConfigured, Instant::now());
        let call = Call { live: self.live, head: self.head, body, route, regime, now };
        converse(&call, protocol, self.wire).await?;
        self.live.journal.amend(self.entry, |seen| seen.answered = true);
        Ok(Next::Close)
    }

    fn sent_head(&self, status: u16) {
        self.live.journal.amend(self.entry, |seen| seen.status = Some(status));
    }
}
