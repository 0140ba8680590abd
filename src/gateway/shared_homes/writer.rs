//! The task that writes what was learned, many objects at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use log::debug;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::entry::SharedChange;
use crate::shared::{Script, SharedError, SharedLink, cmd};

/// How long changes are collected.
const COLLECT_TIME: Duration = Duration::from_millis(3);
/// The most changes that are written at a time.
const MAX_BATCH: usize = 256;
/// How long the server may take for one of them.
const TIME_LIMIT: Duration = Duration::from_secs(1);

/// Keeps where an object lives. `KEYS`: the object. `ARGV`: the value, how many seconds it holds. Who made it and when is
/// known to the instance that saw it made, which writes first; where it lives is what was seen last.
const LEARN_SCRIPT: &str = r"
local value = ARGV[1]
local known = redis.call('GET', KEYS[1])
if known then
  local kept = string.match(known, '^(1;%d*;[01];%x*;)')
  local resource = string.match(value, '^1;%d*;[01];%x*;(.*)$')
  if kept and resource then
    value = kept .. resource
  end
end
return redis.call('SET', KEYS[1], value, 'EX', ARGV[2])
";

/// Writes changes for as long as the process runs. Those that could not be written are counted as dropped.
pub(super) async fn write_changes(
    link: Arc<SharedLink>,
    mut changes: mpsc::Receiver<SharedChange>,
    dropped: Arc<AtomicU64>,
) {
    let script = Script::new(LEARN_SCRIPT);
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while changes.recv_many(&mut batch, MAX_BATCH).await > 0 {
        if batch.len() < MAX_BATCH {
            sleep(COLLECT_TIME).await;
            while batch.len() < MAX_BATCH
                && let Ok(change) = changes.try_recv()
            {
                batch.push(change);
            }
        }
        // Commands of one connection run in the order in which they are called, and are sent together.
        let results = join_all(batch.drain(..).map(|change| write(&link, &script, change))).await;
        let failures = results.iter().filter(|result| result.is_err()).count();
        dropped.fetch_add(failures as u64, Ordering::Relaxed);
        if let Some(Err(problem)) = results.into_iter().find(Result::is_err) {
            debug!("shared.redis: {failures} homes of objects could not be written: {problem}");
        }
    }
}

async fn write(link: &SharedLink, script: &Script, change: SharedChange) -> Result<(), SharedError> {
    match change {
        SharedChange::Learned { key, home, lifetime } => {
            let mut invocation = script.prepare_invoke();
            invocation.key(link.keys().key(&key.to_text())).arg(home.to_text()).arg(lifetime.as_secs());
            link.run_script(&invocation, TIME_LIMIT).await?;
        }
        SharedChange::Forgotten(key) => {
            let mut command = cmd("DEL");
            command.arg(link.keys().key(&key.to_text()));
            link.run(&command, TIME_LIMIT).await?;
        }
    }
    Ok(())
}
