//! Who wants to hear of which channel.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Handler = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// The handlers of each channel, in the order in which the channels got their first one.
#[derive(Default)]
pub(super) struct Subscriptions {
    channels: Mutex<Vec<(String, Vec<Handler>)>>,
    count: watch::Sender<usize>,
}

impl fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriptions").finish_non_exhaustive()
    }
}

impl Subscriptions {
    pub(super) fn add(&self, channel: String, handler: Handler) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        match channels.iter_mut().find(|(known, _)| *known == channel) {
            Some((_, handlers)) => handlers.push(handler),
            None => channels.push((channel, vec![handler])),
        }
        self.count.send_replace(channels.len());
    }

    /// Waits until there are more channels than this.
    pub(super) async fn changed(&self, known: usize) {
        // It fails only if the sender is dropped, which `self` owns.
        let _ = self.count.subscribe().wait_for(|count| *count > known).await;
    }

    /// The channels from this number on.
    pub(super) fn channels_from(&self, first: usize) -> Vec<String> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.iter().skip(first).map(|(channel, _)| channel.clone()).collect()
    }

    /// Calls the handlers of a channel.
    pub(super) fn deliver(&self, channel: &str, payload: &[u8]) {
        // Not under the lock: a handler may subscribe to something.
        let handlers = {
            let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            channels.iter().find(|(known, _)| known == channel).map(|(_, handlers)| handlers.clone())
        };
        for handler in handlers.unwrap_or_default() {
            handler(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handlers_hear_of_their_channel_and_new_channels_are_told() {
        let (subscriptions, heard) = (Subscriptions::default(), Arc::new(Mutex::new(Vec::new())));
        let listen = |channel: &str, name: &'static str| {
            let heard = Arc::clone(&heard);
            let handler = move |payload: &[u8]| heard.lock().unwrap().push((name, payload.to_vec()));
            subscriptions.add(channel.to_owned(), Arc::new(handler));
        };
        listen("a", "first");
        listen("a", "second");
        listen("b", "third");
        subscriptions.changed(1).await;
        assert_eq!(subscriptions.channels_from(0), ["a", "b"]);
        assert_eq!(subscriptions.channels_from(1), ["b"]);
        subscriptions.deliver("a", b"1");
        subscriptions.deliver("b", b"2");
        subscriptions.deliver("c", b"3");
        let expected = [("first", b"1".to_vec()), ("second", b"1".to_vec()), ("third", b"2".to_vec())];
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}
