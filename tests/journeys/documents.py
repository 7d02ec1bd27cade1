"""The documents the journeys send, as a front end would write them."""

PROVIDER_SAVE = """mutation($input: ModelProviderSaveInput!) {
  modelProviderSave(input: $input) { modelProvider { id name hasApiKey shared } userErrors { code message field } }
}"""

BOT = """id databaseId name agentId status desiredState errorMessage rooms viewerCan
  gateway { pid port version restartCount uptimeSeconds } owner { name }
  config { revision restartPending rolledBack }"""

BOT_CREATE = f"""mutation($input: BotCreateInput!) {{
  botCreate(input: $input) {{ bot {{ {BOT} }} userErrors {{ code message field }} clientMutationId }}
}}"""

BOT_UPDATE = f"""mutation($input: BotUpdateInput!) {{
  botUpdate(input: $input) {{ bot {{ {BOT} }} userErrors {{ code message field }} }}
}}"""

BOT_START = f"""mutation($input: BotStartInput!) {{
  botStart(input: $input) {{ bot {{ {BOT} }} userErrors {{ code message field }} }}
}}"""

BOT_STOP = f"""mutation($input: BotStopInput!) {{
  botStop(input: $input) {{ bot {{ {BOT} }} userErrors {{ code message field }} }}
}}"""

BOT_RESTART = f"""mutation($input: BotRestartInput!) {{
  botRestart(input: $input) {{ bot {{ {BOT} }} userErrors {{ code message field }} }}
}}"""

BOT_DELETE = """mutation($input: BotDeleteInput!) {
  botDelete(input: $input) { deletedBotId userErrors { code message field } }
}"""

MESSAGE_SEND = """mutation($input: MessageSendInput!) {
  messageSend(input: $input) { message { role text } reply { role text model } userErrors { code message field } }
}"""

BOT_QUERY = f"query($by: BotBy!) {{ bot(by: $by) {{ {BOT} }} }}"

BOT_STATUS = """subscription($ids: [ID!], $after: String) {
  botStatus(botIds: $ids, after: $after) {
    cursor kind event botId agentId status previousStatus reason phase port pid error exitCode exitSignal droppedCount
    bot { status }
  }
}"""

ROOM = """subscription($names: [String!]!, $after: String) {
  room(names: $names, after: $after) { cursor room type event data timestamp timestampMs }
}"""
