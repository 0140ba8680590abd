//! Whether a connection is still good, and the renewal of its password.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cmd;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::connect::{REPLY_TIMEOUT, ServerAccess};
use super::problem::Problem;

/// How often the server is asked whether it answers.
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// Asks the server again and again whether it answers, and sends it a renewed password. Ends when it does not answer.
pub(super) async fn watch(
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
