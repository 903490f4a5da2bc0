"""Attribution graphs: which features, errors and tokens a prompt's next token is made of."""
