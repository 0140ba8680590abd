//! Handles one request: chooses its mood, reads its body, and sends the response.

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::respond::build_response;
use crate::demo::api::common_headers::with_common_headers;
use crate::demo::api::error_response::to_response;
use crate::demo::api::request::SimulatedRequest;
use crate::demo::api::response::{ResponseBody, SimulatedResponse, WebSocketApi};
use crate::demo::api::route::RequestRoute;
use crate::demo::config::mood_parser::parse_mood;
use crate::demo::faults::delivery::{CutoffMethod, DeliveryOutcome, DeliveryPlan};
use crate::demo::http::connection::HttpConnection;
use crate::demo::http::error::ConnectionError;
use crate::demo::http::request_head::{RequestBodyFraming, RequestHead};
use crate::demo::http::resettable_stream::ResettableStream;
use crate::demo::http::websocket::handshake_accept_value;
use crate::demo::moods::mood::Mood;
use crate::demo::moods::simulated_error::SimulatedError;
use crate::demo::resource::rate_limiter::LimitOverride;
use crate::demo::resource::state::ResourceState;
use crate::demo::util::locking::lock_ignoring_poison;
use crate::demo::websocket::session::run_websocket_session;

/// A request whose head was read.
pub(super) struct RequestHandler<'a, S> {
    pub(super) resource: &'a ResourceState,
    pub(super) connection: &'a mut HttpConnection<S>,
    pub(super) head: &'a RequestHead,
    /// The number of the request in the request log.
    pub(super) log_entry_number: usize,
}

/// What happens to the connection after a request.
pub(super) enum NextConnectionAction {
    ReadNextRequest,
    Close,
    Reset,
}

/// How the delivery of a response ended.
struct Delivery {
    next_action: NextConnectionAction,
    /// Whether the whole response was sent.
    is_complete: bool,
}

impl<S: ResettableStream> RequestHandler<'_, S> {
    pub(super) async fn handle_request(&mut self) -> Result<NextConnectionAction, ConnectionError> {
        let framing = self.head.body_framing()?;
        let route = RequestRoute::from_head(self.head);
        let mood_from_head = self.choose_mood_from_head(route.as_ref());
        if let Some(Mood::EarlyAnswer { error, closes_connection }) = mood_from_head {
            return self.respond_before_body(framing, error, closes_connection).await;
        }
        let body = self.read_body(framing).await?;
        let mut mood = mood_from_head.unwrap_or_else(|| {
            let deployment =
                route.as_ref().and_then(|route| route.deployment_from_route_or_body(self.head, &body));
            lock_ignoring_poison(&self.resource.mood_selector).next_mood(deployment.as_deref())
        });
        while let Mood::After(delay, next_mood) = mood {
            self.connection.sleep_while_connected(delay).await?;
            mood = *next_mood;
        }
        match mood {
            Mood::Mute => {
                self.connection.wait_for_disconnect().await;
                Err(ConnectionError::Disconnected)
            }
            Mood::ResetBeforeHead => Ok(NextConnectionAction::Reset),
            Mood::CloseBeforeHead => Ok(NextConnectionAction::Close),
            Mood::Unsolicited101 => {
                self.record_response_status(101);
                self.connection.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: nonsense\r\n\r\n").await?;
                self.connection.wait_for_disconnect().await;
                Ok(NextConnectionAction::Close)
            }
            mood => self.respond_after_body(&body, &mood, route.as_ref()).await,
        }
    }

    /// The mood, if the head suffices to choose it. `None` if it depends on a deployment that only the body
    /// names. The handshake of a Responses WebSocket names none: it has only moods that are about connections, and
    /// leaves the others to the turns.
    fn choose_mood_from_head(&self, route: Option<&RequestRoute>) -> Option<Mood> {
        let is_responses_upgrade = self.head.is_websocket_upgrade()
            && route.is_some_and(|route| route.operation_path_segments() == ["responses"]);
        if self.resource.definition.allows_mood_header
            && let Some(text) = self.head.header("x-simulate")
        {
            match parse_mood(text) {
                Ok(mood) if is_responses_upgrade && !mood.is_about_connections() => return Some(Mood::Calm),
                Ok(mood) => return Some(mood),
                Err(reason) => log::warn!("simulate: header x-simulate ignored: {reason}"),
            }
        }
        let deployment = route.and_then(|route| route.deployment.as_deref());
        let mut selector = lock_ignoring_poison(&self.resource.mood_selector);
        if is_responses_upgrade {
            return Some(selector.next_handshake_mood());
        }
        (deployment.is_some() || !selector.depends_on_deployment()).then(|| selector.next_mood(deployment))
    }

    async fn read_body(&mut self, framing: RequestBodyFraming) -> Result<Bytes, ConnectionError> {
        let mut body = BytesMut::new();
        let expects_continue =
            self.head.header_has_token("expect", "100-continue") && framing != RequestBodyFraming::Length(0);
        // A client that sends its body without waiting needs no 100, nor does one of HTTP/1.0
        // (RFC 9110 section 10.1.1).
        if expects_continue && self.head.minor_version == 1 && !self.connection.has_buffered_bytes() {
            self.connection.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let result = self.connection.read_body(framing, &mut body).await;
        let body = body.freeze();
        let logged_body = self.resource.definition.records_request_bodies.then(|| body.clone());
        self.resource.request_log.update_request(self.log_entry_number, |logged| {
            logged.body_len = body.len() as u64;
            logged.body = logged_body;
            logged.is_body_complete = result.is_ok();
        });
        result.map(|()| body)
    }

    async fn respond_before_body(
        &mut self,
        framing: RequestBodyFraming,
        error: SimulatedError,
        closes_connection: bool,
    ) -> Result<NextConnectionAction, ConnectionError> {
        let response = with_common_headers(self.resource, self.head, to_response(error));
        let mood = Mood::EarlyAnswer { error, closes_connection };
        let delivery = self.deliver_response(&response, &mood, !closes_connection).await?;
        if closes_connection {
            return Ok(NextConnectionAction::Close);
        }
        // The body still has to be read, or it would be taken for the next request.
        let mut body = BytesMut::new();
        self.connection.read_body(framing, &mut body).await?;
        self.resource.request_log.update_request(self.log_entry_number, |logged| {
            (logged.body_len, logged.is_body_complete) = (body.len() as u64, true);
        });
        Ok(delivery.next_action)
    }

    async fn respond_after_body(
        &mut self,
        body: &Bytes,
        mood: &Mood,
        route: Option<&RequestRoute>,
    ) -> Result<NextConnectionAction, ConnectionError> {
        let response = build_response(self.resource, self.head, body, mood, Instant::now());
        if let (ResponseBody::WebSocket(api), Some(route)) = (&response.body, route) {
            return self.upgrade_to_websocket(body, api, route).await;
        }
        let mut stream_end = response.streamed_response.clone().map(|streamed| streamed.begin(self.resource));
        let delivery = self.deliver_response(&response, mood, self.head.keeps_alive()).await;
        if let (Ok(delivery), Some(stream_end)) = (&delivery, &mut stream_end)
            && delivery.is_complete
        {
            stream_end.set_complete();
        }
        drop(stream_end);
        // What was generated is charged even if the client has disconnected.
        if let Some(charge) = &response.charge_to_settle {
            self.resource.settle_charge(charge);
        }
        delivery.map(|delivery| delivery.next_action)
    }

    async fn deliver_response(
        &mut self,
        response: &SimulatedResponse,
        mood: &Mood,
        keeps_alive: bool,
    ) -> Result<Delivery, ConnectionError> {
        let plan = DeliveryPlan::from_mood(mood, self.resource.definition.timing);
        self.connection.sleep_while_connected(plan.first_byte_delay).await?;
        plan.send_head(self.connection, self.head, response, keeps_alive).await?;
        self.record_response_status(response.status);
        let outcome = plan.send_body(self.connection, self.head, &response.body).await?;
        let is_complete = !matches!(outcome, DeliveryOutcome::CutOff(_));
        self.resource
            .request_log
            .update_request(self.log_entry_number, |logged| logged.is_response_complete = is_complete);
        let next_action = match outcome {
            DeliveryOutcome::CompleteReusable if keeps_alive => NextConnectionAction::ReadNextRequest,
            DeliveryOutcome::CompleteReusable
            | DeliveryOutcome::CompleteMustClose
            | DeliveryOutcome::CutOff(CutoffMethod::Close) => NextConnectionAction::Close,
            DeliveryOutcome::CutOff(CutoffMethod::Reset) => NextConnectionAction::Reset,
        };
        Ok(Delivery { next_action, is_complete })
    }

    async fn upgrade_to_websocket(
        &mut self,
        body: &Bytes,
        api: &WebSocketApi,
        route: &RequestRoute,
    ) -> Result<NextConnectionAction, ConnectionError> {
        let accept_value = handshake_accept_value(self.head)
            .ok_or(ConnectionError::MalformedRequest(400, "not a proper WebSocket handshake"))?;
        let request_id = self.resource.id_generator.new_uuid_v4();
        let text = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {accept_value}\r\napim-request-id: {request_id}\r\nx-ms-region: {}\r\n{}\r\n",
            self.resource.definition.region,
            selected_subprotocol(self.head, api)
                .map(|name| format!("sec-websocket-protocol: {name}\r\n"))
                .unwrap_or_default(),
        );
        self.connection.write_all(text.as_bytes()).await?;
        self.record_response_status(101);
        let request = SimulatedRequest {
            resource: self.resource,
            head: self.head,
            body,
            route,
            limit_override: LimitOverride::None,
            keeps_responses: true,
            read_lag: self.resource.read_lag(),
            received_at: Instant::now(),
        };
        let log = &self.resource.request_log;
        let handshake = log.request(self.log_entry_number).ok_or(ConnectionError::Disconnected)?;
        let end = run_websocket_session(&request, &handshake, api, self.connection).await?;
        log.update_request(self.log_entry_number, |logged| logged.is_response_complete = true);
        Ok(match end {
            CutoffMethod::Close => NextConnectionAction::Close,
            CutoffMethod::Reset => NextConnectionAction::Reset,
        })
    }

    fn record_response_status(&self, status: u16) {
        self.resource
            .request_log
            .update_request(self.log_entry_number, |logged| logged.response_status = Some(status));
    }
}

/// The first subprotocol that the client offers and the API has. Others, among them those that carry a key, are passed
/// over.
fn selected_subprotocol<'h>(head: &'h RequestHead, api: &WebSocketApi) -> Option<&'h str> {
    let prefix = match api {
        WebSocketApi::Realtime(_) => "realtime",
        WebSocketApi::Responses => "openai-beta.responses.",
    };
    let offered = head.header("sec-websocket-protocol")?.split(',').map(str::trim);
    offered.into_iter().find(|name| name.starts_with(prefix))
}
