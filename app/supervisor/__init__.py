"""The fleet's life: one runner a bot, woken by intent, by deaths and by time."""
