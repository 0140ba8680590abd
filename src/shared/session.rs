//! One connection from its first to its last command: it is watched, carries what is published, and brings what others
//! publish.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Msg, PushInfo, cmd};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::backoff::Backoff;
use super::connect::{OpenConnection, REPLY_TIMEOUT, ServerAccess};
use super::link_state::{LinkState, OutgoingMessage};
use super::problem::Problem;

/// How often the server is asked whether it answers.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// A connection that was up for so long was a good one: the next attempt comes at once.
const STABLE_AFTER: Duration = Duration::from_secs(2);
/// How many messages are published with one write.
const MAX_BATCH_LEN: usize = 64;

/// Keeps a connection for as long as the process runs.
pub(super) async fn keep_connected(state: &LinkState, mut outgoing: mpsc::Receiver<OutgoingMessage>) {
    let mut backoff = Backoff::default();
    loop {
        let problem = match state.access.connect().await {
            Ok(open) => {
                let up_since = Instant::now();
                let problem = serve(state, open, &mut outgoing).await;
                state.set_connection(None);
                if up_since.elapsed() >= STABLE_AFTER {
                    backoff.reset();
                }
                problem
            }
            Err(problem) => problem,
        };
        state.status.on_down(&problem.to_string(), Instant::now());
        // They are of the moment; later they would mislead.
        while outgoing.try_recv().is_ok() {
            state.count_dropped(1);
        }
        sleep(backoff.next_wait(fastrand::f64())).await;
    }
}

/// Uses a connection until it fails.
async fn serve(
    state: &LinkState,
    open: OpenConnection,
    outgoing: &mut mpsc::Receiver<OutgoingMessage>,
) -> Problem {
    let OpenConnection { connection, pushes, mut driver, password_id } = open;
    // First: once the connection is up, no message is missed.
    let mut subscribed = 0;
    if let Err(problem) = subscribe(state, &mut connection.clone(), &mut subscribed).await {
        return problem;
    }
    state.set_connection(Some(connection.clone()));
    state.status.on_up(Instant::now());
    tokio::select! {
        () = driver.ended() => Problem::Closed,
        problem = watch(&state.access, connection.clone(), password_id) => problem,
        problem = publish(state, connection.clone(), outgoing) => problem,
        problem = follow_subscriptions(state, connection.clone(), subscribed) => problem,
        problem = receive(state, pushes) => problem,
        problem = state.doubted() => problem,
    }
}

/// Asks the server again and again whether it answers, and sends it a renewed password. Ends when it does not answer.
async fn watch(
    access: &ServerAccess,
    mut connection: MultiplexedConnection,
    mut password_id: u64,
) -> Problem {
    let mut ticks = interval(PING_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut command = cmd("PING");
        let renewed = access.password.as_ref().and_then(|secret| secret.current_value());
        if let Some(password) = renewed.filter(|password| password.id != password_id) {
            password_id = password.id;
            command = cmd("AUTH");
            if let Some(username) = &access.config.username {
                command.arg(username);
            }
            command.arg(password.secret.expose_secret());
        }
        match timeout(REPLY_TIMEOUT, command.query_async::<()>(&mut connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let problem = access.problem_of(&error, false);
                access.on_problem(&problem, password_id);
                return problem;
            }
            Err(_) => return Problem::Silent(REPLY_TIMEOUT),
        }
    }
}

async fn publish(
    state: &LinkState,
    mut connection: MultiplexedConnection,
    outgoing: &mut mpsc::Receiver<OutgoingMessage>,
) -> Problem {
    let mut batch = Vec::new();
    loop {
        if outgoing.recv_many(&mut batch, MAX_BATCH_LEN).await == 0 {
            // The link is gone, and its task with it.
            return Problem::Closed;
        }
        let mut pipeline = redis::pipe();
        for OutgoingMessage { channel, payload } in &batch {
            pipeline.cmd("PUBLISH").arg(channel).arg(payload).ignore();
        }
        match timeout(REPLY_TIMEOUT, pipeline.query_async::<()>(&mut connection)).await {
            Ok(Ok(())) => batch.clear(),
            failed => {
                state.count_dropped(batch.len());
                return match failed {
                    Ok(Err(error)) => state.access.problem_of(&error, false),
                    _ => Problem::Silent(REPLY_TIMEOUT),
                };
            }
        }
    }
}

/// Subscribes to topics that get their first handler later.
async fn follow_subscriptions(
    state: &LinkState,
    mut connection: MultiplexedConnection,
    mut subscribed: usize,
) -> Problem {
    loop {
        state.subscriptions.changed(subscribed).await;
        if let Err(problem) = subscribe(state, &mut connection, &mut subscribed).await {
            return problem;
        }
    }
}

/// Subscribes to all channels from the one with this number on.
async fn subscribe(
    state: &LinkState,
    connection: &mut MultiplexedConnection,
    subscribed: &mut usize,
) -> Result<(), Problem> {
    let channels = state.subscriptions.channels_from(*subscribed);
    if channels.is_empty() {
        return Ok(());
    }
    let subscribing = timeout(REPLY_TIMEOUT, connection.subscribe(&channels)).await;
    subscribing
        .map_err(|_| Problem::Silent(REPLY_TIMEOUT))?
        .map_err(|error| state.access.problem_of(&error, false))?;
    *subscribed += channels.len();
    Ok(())
}

async fn receive(state: &LinkState, mut pushes: mpsc::Receiver<PushInfo>) -> Problem {
    while let Some(push) = pushes.recv().await {
        if let Some(message) = Msg::from_push_info(push) {
            state.subscriptions.deliver(message.get_channel_name(), message.get_payload_bytes());
        }
    }
    Problem::Closed
}
