"""The API: schema, resolvers, rights and the sockets that carry them."""
