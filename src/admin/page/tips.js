// What a number means: shown when the pointer is on it or its name has the focus.

const MEANINGS = {
  state: 'What a request finds now. healthy: serves. cooling: answered 429, or sent retry-after. failing: fails most of what it is asked. breaker_open: failed too often. stalled: does not answer any more. unresolvable: its name does not resolve. credential: rejects its credential or our network. permission: its credential may not do an operation. absent: lacks a deployment. drained: by the operator. disabled: by the configuration.',
  name: 'Its name in the configuration. Worst first, then in the order of the file. A row moves up at once, and down when it has been better for 30 s.',
  tier: 'Its tier and, unless it is 1, its weight. Tier 1 is used first; the weights of a tier share its requests.',
  share: 'Its share of all attempts of the last minute.',
  flight: 'Attempts that have not ended: they wait for a response, or receive one.',
  attempts: 'Attempts that ended in the last minute. A request that is retried makes several.',
  throttled: 'Attempts of the last minute that got 429.',
  failed: 'Attempts of the last minute without a usable response: a connection error, a timeout, 408 or 5xx.',
  p50: 'Half of the attempts that ended well in the last minute took at most this, to the end of the response.',
  p95: '95 % of the attempts that ended well in the last minute took at most this, to the end of the response.',
  reason: 'Why it is not healthy, and for how long.',
  trouble: 'The first that applies. failed: a 5xx, a response that broke off, or none. refused: the client got a 4xx, or a refusal of the load balancer. retried: it took more than one attempt. slow: no first byte for more than 30 s, or more than 1 s in the queue and between attempts.',
  'client-status': 'The status that the client got; “–” if it got none.',
  'request-attempts': 'How often a backend was asked.',
  duration: 'From the request head to the end of the response.',
  r401: 'Refused in the last minute: no valid key, token or certificate.',
  r403: 'Refused in the last minute with 403: the client may not do this.',
  r404: 'Refused in the last minute with 404: no such deployment, path or object.',
  r429: 'Refused in the last minute with 429: a limit of the client, or throttled backends.',
  other: 'Refused in the last minute: any other 4xx, and refusals of the load balancer with 503.',
  'request-failed': 'Requests of the last minute that failed: a 5xx, a response that broke off, or none.',
  'refused-total': 'All that were refused or failed since the start of the process.',
  'limit-used': 'What counts against the limit now, with what requests in progress have reserved: of the last 60 s, of the UTC day or month, or of the requests in flight.',
  resource: 'What owns objects: an endpoint, or what the configuration calls it. Its backends share its objects.',
  objects: 'Responses, files, conversations and the like that are remembered to be there.',
  'object-requests': 'Requests about its objects that ended in the last minute.',
  accepted: 'How often it had an object that it was asked for since nobody knew where that is, since the start.',
  denied: 'How often it did not have an object that it was asked for, since the start; also one that it could not read yet.',
  'read-lag': 'How long it last took until it could read what it had just made; “–” if it was never late.',
  sink: 'spool: records that wait to be written to disk. jsonl: the file. log_analytics: the table.',
  backlog: 'Records and bytes that are not delivered yet.',
  'oldest-record': 'The age of the oldest record that is not delivered.',
  dropped: 'Records that were lost since the start; in brackets those of the last 15 minutes.',
  'dead-letters': 'Records that the sink rejected; they are in the dead letter file.',
};

const HIDE_DELAY = 150;
let tipOwner = null, tipTimer = null;

/** The meaning of a node and what else there is to say of its value. */
function tipOf(node) {
  const meaning = MEANINGS[node.dataset.tip] ?? '';
  return [meaning, node.tip].filter(Boolean).join('\n');
}

function showTip(node) {
  clearTimeout(tipTimer);
  const text = tipOf(node);
  if (!text) return hideTip();
  if (tipOwner !== node) {
    tipOwner?.removeAttribute('aria-describedby');
    if (node.matches('button')) node.setAttribute('aria-describedby', 'tip');
  }
  tipOwner = node;
  setText($('tip'), text);
  setVisible($('tip'), true);
  placeTip();
}

function placeTip() {
  const tip = $('tip'), around = tipOwner.getBoundingClientRect(), size = tip.getBoundingClientRect(), edge = 8;
  const left = Math.max(edge, Math.min(around.left, document.documentElement.clientWidth - size.width - edge));
  const fitsBelow = around.bottom + 4 + size.height < innerHeight;
  tip.style.translate = `${Math.round(left)}px ${Math.round(fitsBelow ? around.bottom + 4 : Math.max(edge, around.top - size.height - 4))}px`;
}

function hideTip() {
  clearTimeout(tipTimer);
  tipOwner?.removeAttribute('aria-describedby');
  tipOwner = null;
  setVisible($('tip'), false);
}

/** Says the values of now while it is shown. */
function updateTip() {
  if (!tipOwner) return;
  if (!tipOwner.isConnected || !tipOwner.checkVisibility()) hideTip();
  else setText($('tip'), tipOf(tipOwner));
}

// Where the pointer was. If something else comes under it without a move, that is no wish to see its tip.
let lastPoint = '';
const pointOf = event => `${event.clientX} ${event.clientY}`;
document.addEventListener('pointermove', event => lastPoint = pointOf(event), { passive: true });

const tipTarget = event => event.target instanceof Element ? event.target.closest('[data-tip]') : null;
document.addEventListener('pointerover', event => {
  if (pointOf(event) === lastPoint) return;
  const node = tipTarget(event);
  if (node) showTip(node);
  else if (tipOwner && !event.target.closest?.('#tip') && !tipOwner.matches(':focus-visible')) {
    clearTimeout(tipTimer);
    tipTimer = setTimeout(hideTip, HIDE_DELAY);
  } else if (event.target.closest?.('#tip')) clearTimeout(tipTimer);
});
document.addEventListener('focusin', event => {
  const node = tipTarget(event);
  if (node) showTip(node);
  else if (tipOwner) hideTip();
});
document.addEventListener('focusout', event => tipOwner === event.target && hideTip());
document.addEventListener('keydown', event => event.key === 'Escape' && hideTip());
addEventListener('scroll', () => {
  if (tipOwner?.matches(':focus-visible')) placeTip();
  else if (tipOwner) hideTip();
}, { passive: true });
