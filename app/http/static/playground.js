// GraphiQL against this server: the headers tab signs in, over HTTP and over the socket alike.
const url = new URL("/graphql", location.href);
const socketUrl = new URL("/graphql", location.href);
socketUrl.protocol = url.protocol === "https:" ? "wss:" : "ws:";

const WELCOME = `# Welcome to ClawNet.
#
# This query runs as it is. For everything else, put
# your token behind "Bearer" in the Headers tab below.

query Welcome {
  serverInfo { version time }
  viewer { name role }
}

# With a token: watch the whole fleet here, while you
# start and stop bots in another tab.
#
# subscription Fleet {
#   botStatus { kind name status reason pid port error }
# }
`;

const HEADERS = `{
  "authorization": "Bearer "
}`;

// A client for each token, so that a subscription goes on while another tab signs in as somebody else.
// Each opens its socket with its first subscription and closes it after its last.
const clients = new Map();
function clientFor(token) {
  if (!clients.has(token)) {
    const connectionParams = token === undefined ? {} : { authorization: token };
    // 4403: the token is refused, and would be again. Anything else passes: a restart, a lost network.
    const shouldRetry = (problem) => problem.code !== 4403;
    clients.set(token, graphqlWs.createClient({ url: socketUrl.href, connectionParams, shouldRetry }));
  }
  return clients.get(token);
}

function tokenIn(headers) {
  const found = Object.entries(headers ?? {}).find(([name]) => name.toLowerCase() === "authorization");
  return found?.[1];
}

// What the socket says of its end, in words; GraphQL's own errors as they are.
function reason(problem) {
  if (problem.code === 4403) {
    return { message: 'Sign in first: put a token that works behind "Bearer" in the Headers tab.' };
  }
  return problem instanceof CloseEvent ? { message: `The socket was closed: ${problem.code} ${problem.reason}` } : problem;
}

function overSocket(params, token) {
  const subscribe = (sink) => {
    const unsubscribe = clientFor(token).subscribe(params, {
      next: (result) => sink.next(result),
      error: (problem) => sink.error(reason(problem)),
      complete: () => sink.complete(),
    });
    return { unsubscribe };
  };
  return { subscribe };
}

const overHttp = GraphiQL.createFetcher({ url: url.href });

function fetcher(params, options) {
  const isAsked = (found) => params.operationName == null || found.name?.value === params.operationName;
  const operation = options?.documentAST?.definitions.find((found) => found.operation && isAsked(found));
  const isSubscription = operation?.operation === "subscription";
  return isSubscription ? overSocket(params, tokenIn(options.headers)) : overHttp(params, options);
}

// GraphiQL's history keeps headers whatever it is told; tokens shall not outlive the page.
const storage = {
  getItem: (name) => localStorage.getItem(name),
  setItem: (name, value) => localStorage.setItem(name, value.replace(/cn_[a-z]_[\w-]+/g, "")),
  removeItem: (name) => localStorage.removeItem(name),
  clear: () => localStorage.clear(),
  get length() {
    return localStorage.length;
  },
};

function Playground() {
  // What the editor holds, for the explorer to show; GraphiQL keeps it under this name.
  const [text, setText] = React.useState(() => localStorage.getItem("graphiql:query") ?? WELCOME);
  // What the explorer wrote, until the editor has it. Handing everything typed back would move the cursor.
  const [written, setWritten] = React.useState();
  const onEdit = (query) => (setText(query), setWritten(query));
  const onEditQuery = (query) => (setText(query), setWritten(undefined));
  const explorer = GraphiQLPluginExplorer.useExplorerPlugin({ query: text, onEdit });
  return React.createElement(GraphiQL, {
    fetcher,
    query: written,
    onEditQuery,
    defaultQuery: WELCOME,
    defaultHeaders: HEADERS,
    defaultEditorToolsVisibility: "headers",
    shouldPersistHeaders: false,
    storage,
    plugins: [explorer],
  });
}

ReactDOM.render(React.createElement(Playground), document.getElementById("playground"));
