// Wires the page, and starts it.

function renderAgain() {
  if (latest) render(latest);
  showStale();
}

$('retry').addEventListener('click', () => {
  abortController?.abort();
  retryNow();
});
$('token').addEventListener('submit', event => {
  event.preventDefault();
  onTokenEntered?.();
});
$('reload').addEventListener('click', confirmReload);
$('confirm-no').addEventListener('click', () => $('confirm-dialog').close());
$('result-close').addEventListener('click', () => setVisible($('result'), false));
$('filter').addEventListener('input', renderAgain);
$('only-unhealthy').addEventListener('change', renderAgain);
$('sort').addEventListener('change', renderAgain);
$('moment').addEventListener('input', keepMoment);
for (const kind of ['pointermove', 'keydown', 'click']) $('backend-table').addEventListener(kind, () => tableUsedAt = Date.now(), { passive: true });
document.addEventListener('visibilitychange', () => document.hidden || renderAgain());
addEventListener('online', () => retryNow());

setInterval(() => {
  if (statusReceivedAt && !staleReason && Date.now() - statusReceivedAt > 7000) markStale('no data is received');
  if (Date.now() - lastHeardAt > 20000) abortController?.abort();
  if (staleReason) return showStale();
  for (const node of countdowns.keys()) {
    if (node.isConnected) showRemaining(node);
    else countdowns.delete(node);
  }
}, 1000);
followEvents();
