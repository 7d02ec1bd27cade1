"""The routes beside GraphQL: sign-in by header, health, the playground."""
