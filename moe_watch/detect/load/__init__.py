"""How the load lies on the experts: balance, dead experts, and a tap that sees nothing."""
