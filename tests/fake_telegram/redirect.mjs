// Leads calls to api.telegram.org to the stand-in at TELEGRAM_STANDIN: OpenClaw 2026.2.1 has no setting for it.
// WhatsApp's servers are out of reach, wherever tests run.
import http from 'node:http';
import https from 'node:https';

const telegram = 'api.telegram.org';
const standin = new URL(process.env.TELEGRAM_STANDIN);

const fetchAnywhere = globalThis.fetch;
globalThis.fetch = (input, init) => {
  const url = new URL(typeof input === 'string' ? input : input.url ?? String(input));
  const target = url.hostname === telegram ? new URL(url.pathname + url.search, standin) : input;
  return fetchAnywhere(target, init);
};

const requestAnywhere = https.request;
https.request = function request(options, ...rest) {
  const url = typeof options === 'string' || options instanceof URL ? new URL(options) : null;
  if ((url?.hostname ?? options.hostname ?? options.host ?? '').endsWith('.whatsapp.com')) {
    return http.request({ host: '127.0.0.1', port: 9, headers: options.headers }, ...rest);
  }
  if ((url?.hostname ?? options.hostname ?? options.host) !== telegram) {
    return requestAnywhere.call(this, options, ...rest);
  }
  // An agent for TLS cannot speak plainly.
  const { agent, ...kept } = url ? {} : options;
  const { hostname, port } = standin;
  const path = url ? url.pathname + url.search : options.path;
  return http.request({ ...kept, protocol: 'http:', host: hostname, hostname, port, path }, ...rest);
};
