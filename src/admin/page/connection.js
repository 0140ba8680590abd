// The connection: the status arrives as server-sent events.

let latest = null, statusReceivedAt = null;
let token = null, staleReason = null, retryAt = null, retryNow = () => {}, lastHeardAt = 0, onTokenEntered = null, abortController = null;

function requestHeaders(more = {}) {
  return token === null ? more : { ...more, authorization: `Bearer ${token}` };
}

class TokenRequired extends Error {}

/** The message of an error response. */
async function errorMessageOf(response) {
  const body = await response.json().catch(() => null);
  return nonEmptyText(body?.error?.message) ?? `the load balancer responded with ${response.status}`;
}

async function followEvents() {
  let pause = 1000;
  for (;;) {
    const before = statusReceivedAt;
    try {
      await readEvents();
      markStale('the load balancer closed the connection');
    } catch (problem) {
      if (problem instanceof TokenRequired) {
        markStale('the load balancer requires a token');
        await askToken();
        continue;
      }
      markStale(abortController.signal.aborted ? 'no data for a while' : problem.message || 'the connection was lost');
    }
    if (statusReceivedAt !== before) pause = 1000;
    retryAt = Date.now() + pause;
    showStale();
    await new Promise(resolve => {
      retryNow = resolve;
      setTimeout(resolve, pause);
    });
    retryAt = null;
    pause = Math.min(pause * 2, 15000);
  }
}

async function readEvents() {
  abortController = new AbortController();
  lastHeardAt = Date.now();
  const response = await fetch('api/events', { headers: requestHeaders({ accept: 'text/event-stream' }), cache: 'no-store', signal: abortController.signal });
  if (response.status === 401) throw new TokenRequired(await errorMessageOf(response));
  if (!response.ok) throw new Error(await errorMessageOf(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let incompleteLine = '', event = '', data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    lastHeardAt = Date.now();
    const lines = (incompleteLine + value).split('\n');
    incompleteLine = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
      if (line.startsWith('event:')) event = line.slice(6).trim();
      else if (line.startsWith('data:')) data.push(line.slice(5));
      else if (line === '') {
        if (data.length && (event === 'status' || event === '')) onStatus(JSON.parse(data.join('\n')));
        event = '';
        data = [];
      }
    }
  }
}

function onStatus(status) {
  if (!status || typeof status !== 'object') throw new Error('the response is not a status');
  latest = status;
  statusReceivedAt = Date.now();
  if (staleReason) {
    staleReason = null;
    setVisible($('stale'), false);
    document.body.classList.remove('is-stale');
    announcementPrefix = 'Connected again';
  }
  setText($('live'), `Live, ${timeFormat.format(statusReceivedAt)}`);
  render(status);
}

/** Marks everything that is shown as stale. */
function markStale(why) {
  const first = staleReason === null;
  staleReason = why;
  if (first) {
    const since = statusReceivedAt ? `The data is stale: no update since ${formatTime(statusReceivedAt)}.` : 'There is no data.';
    announce(`${since} ${why}`);
    document.body.classList.add('is-stale');
    for (const node of countdowns.keys()) showRemaining(node);
  }
  showStale();
}

function showStale() {
  if (!staleReason) return;
  const ago = statusReceivedAt ? `No update since ${formatTime(statusReceivedAt)} (${formatDuration((Date.now() - statusReceivedAt) / 1000)} ago)` : 'No data yet';
  const next = retryAt ? ` Retrying in ${formatDuration(Math.max(0, Math.ceil((retryAt - Date.now()) / 1000)))}.` : '';
  setText($('stale-text'), `${ago}: ${staleReason}.${next}`);
  setVisible($('stale'), statusReceivedAt !== null || $('token').hidden);
  setVisible($('retry'), $('token').hidden);
  setText($('live'), 'Disconnected');
  setText($('since'), statusReceivedAt ? `since ${formatTime(statusReceivedAt)}` : '');
  setText($('meaning'), statusReceivedAt ? 'the page shows the status of that time' : '');
  if (statusReceivedAt) showHeadline('?', 'unknown', 'unknown', `unknown since ${formatTime(statusReceivedAt)}`);
  else showHeadline('?', 'unknown', 'no data yet');
}

function askToken() {
  const form = $('token'), input = $('token-input');
  setText($('token-reason'), token === null ? 'This load balancer requires its admin token.' : 'That token was not accepted.');
  setVisible(form, true);
  showStale();
  input.value = '';
  input.focus();
  return new Promise(resolve => {
    onTokenEntered = () => {
      token = input.value;
      input.value = '';
      setVisible(form, false);
      resolve();
    };
  });
}
