// GraphiQL against this server: the headers tab signs in, over HTTP and over the socket alike.
const url = new URL("/graphql", location.href);
const socketUrl = new URL("/graphql", location.href);
socketUrl.protocol = url.protocol === "https:" ? "wss:" : "ws:";

const WELCOME = `# Welcome to ClawNet.
#
# This query runs as it is. For everything else, put your token into the "Headers" tab below:
#   {"authorization": "Bearer cn_p_…"}

query Welcome {
  serverInfo { version time subscriptionProtocols }
  viewer { name role }
}

# With a token: watch the whole fleet while you start and stop bots in another tab.
#
# subscription Fleet {
#   botStatus { kind event name status reason pid port error timestamp }
# }
`;

// One socket for each token; the last one stays open until the token changes.
let socket = { token: undefined, client: undefined };
function socketFor(headers) {
  const key = Object.keys(headers ?? {}).find((name) => name.toLowerCase() === "authorization");
  const token = key === undefined ? undefined : headers[key];
  if (socket.client === undefined || socket.token !== token) {
    socket.client?.dispose();
    const client = graphqlWs.createClient({
      url: socketUrl.href,
      connectionParams: token === undefined ? {} : { authorization: token },
      shouldRetry: () => true,
    });
    socket = { token, client };
  }
  return socket.client;
}

function fetcher(params, options) {
  const wsClient = socketFor(options?.headers);
  return GraphiQL.createFetcher({ url: url.href, wsClient })(params, options);
}

const explorer = GraphiQLPluginExplorer.explorerPlugin?.();

ReactDOM.render(
  React.createElement(GraphiQL, {
    fetcher,
    defaultQuery: WELCOME,
    defaultEditorToolsVisibility: "headers",
    headers: undefined,
    shouldPersistHeaders: false,
    plugins: explorer ? [explorer] : [],
  }),
  document.getElementById("playground"),
);
