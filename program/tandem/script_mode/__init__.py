"""Users' scripts, run as AWS's toolkits run them."""
