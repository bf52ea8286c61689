"""The screens: each shows the store's data and names what it needs fetched."""
