// Stored objects: which resource has how many, and how it answers to questions for them.

const MOST_RESOURCES = 5;

function showObjects(status) {
  const affinity = status.affinity && typeof status.affinity === 'object' ? status.affinity : null;
  // Earlier versions do not tell.
  setVisible($('objects'), affinity !== null);
  if (!affinity) return;
  const known = resource => isKnown(resource.entries) ? resource.entries : -1;
  const resources = objectsIn(affinity.resources).sort((a, b) => known(b) - known(a));
  updateList($('resource-table'), firstOf(resources, MOST_RESOURCES, $('more-resources'), renderAgain), 'resource-row', nameOf, (f, resource) => {
    const asked = resource.asked ?? {};
    setText(f.name, nameOf(resource));
    setNumber(f.entries, resource.entries);
    setNumber(f.requests, resource.last_minute_requests);
    setNumber(f.accepted, asked.accepted);
    setNumber(f.denied, asked.denied);
    setNumber(f.lag, resource.last_read_lag_ms, formatMillis);
    setText(f.backends, textsIn(resource.backends).join(', ') || '–');
  });
  setVisible($('resource-table'), resources.length > 0);
  setText($('objects-note'), describeMemory(affinity));
}

/** How full the memory is, and whether it outlives the process. */
function describeMemory(affinity) {
  const forgotten = affinity.evicted > 0 ? `, ${formatCount(affinity.evicted)} forgotten since it was full (${formatCount(affinity.evicted_with_maker)} with a maker)` : '';
  const kept = affinity.not_saved === null ? ', kept in the state directory' : nonEmptyText(affinity.not_saved) ? ', not kept beyond this process' : '';
  return `${formatCount(affinity.entries)} of ${formatCompact(affinity.capacity)} ids remembered (${formatBytes(affinity.bytes)})${forgotten}${kept}.`;
}

/** What is remembered of the resource of a backend. */
function describeObjectsOf(name) {
  const resource = objectsIn(latest?.affinity?.resources).find(resource => textsIn(resource.backends).includes(name));
  return resource ? `${formatCount(resource.entries)} on ${nameOf(resource)}; ${formatCount(resource.last_minute_requests)} requests about them in the last minute` : '–';
}

/** What still refers to the objects of the resource of a drained backend. */
function describeHomedRequests(resource) {
  if (!resource || typeof resource !== 'object' || !(resource.entries > 0 || resource.last_minute_requests > 0)) return null;
  const others = textsIn(resource.other_backends);
  const place = others.length ? `go to ${others.join(', ')}, and still there as long as none of these can take them` : 'still go there: the resource has no other backend that is not drained';
  return `${pluralize(resource.entries, 'object')} on its resource ${nameOf(resource)}. Requests that refer to them (${formatCount(resource.last_minute_requests)} in the last minute) ${place}.`;
}
