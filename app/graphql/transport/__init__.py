"""How GraphQL travels: HTTP and graphql-transport-ws."""
