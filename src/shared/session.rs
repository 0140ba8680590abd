//! One connection from its first to its last command: it is watched, carries what is published, and brings what others
//! publish.

use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{Msg, PushInfo};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::backoff::{Backoff, STABLE_AFTER};
use super::cluster::ClusterKeeper;
use super::connect::{OpenConnection, REPLY_TIMEOUT};
use super::link_state::{LinkState, OutgoingMessage};
use super::open_server::{OpenServer, open_server};
use super::problem::Problem;
use super::watch::watch;

/// How many messages are published with one write.
const MAX_BATCH_LEN: usize = 64;

/// Keeps a connection for as long as the process runs.
pub(super) async fn keep_connected(state: &LinkState, mut outgoing: mpsc::Receiver<OutgoingMessage>) {
    let mut backoff = Backoff::default();
    loop {
        let up_since = Instant::now();
        let problem = match state.access.connect().await {
            Ok(open) => serve(state, open, &mut outgoing).await,
            Err(problem) => problem,
        };
        let was_up = state.is_up();
        state.set_connection(None);
        if was_up && up_since.elapsed() >= STABLE_AFTER {
            backoff.reset();
        }
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
    mut open: OpenConnection,
    outgoing: &mut mpsc::Receiver<OutgoingMessage>,
) -> Problem {
    // First: once the connection is up, no message is missed.
    let mut subscribed = 0;
    if let Err(problem) = subscribe(state, &mut open.connection, &mut subscribed).await {
        return problem;
    }
    let server = match open_server(&state.access, open, REPLY_TIMEOUT).await {
        Ok(server) => server,
        Err(problem) => return problem,
    };
    let OpenServer { open, connection: commands, keeper } = server;
    let OpenConnection { connection, pushes, mut driver, password_id, .. } = open;
    state.set_connection(Some(commands));
    state.status.on_up(Instant::now());
    tokio::select! {
        () = driver.ended() => Problem::Closed,
        problem = watch(&state.access, connection.clone(), password_id) => problem,
        problem = publish(state, connection.clone(), outgoing) => problem,
        problem = follow_subscriptions(state, connection.clone(), subscribed) => problem,
        problem = receive(state, pushes) => problem,
        problem = follow_cluster(state, keeper, connection.clone()) => problem,
        problem = state.doubted() => problem,
    }
}

/// Follows the changes of a cluster. Without one, it never ends.
async fn follow_cluster(
    state: &LinkState,
    keeper: Option<ClusterKeeper>,
    connection: MultiplexedConnection,
) -> Problem {
    match keeper {
        Some(keeper) => keeper.run(connection, |problem| state.status.on_partial_problem(problem)).await,
        None => std::future::pending().await,
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
