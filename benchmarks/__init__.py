"""The benchmark: asking exam questions of every level of a model, and measuring what each costs."""
